// Opens the pack's workflows and blueprints with the model that is there. They name the folder that Ovis-U1 Download makes; the same
// model may have another name here, or may not be here yet.

import { app } from "../../scripts/app.js";

const NAMED = "Ovis-U1-3B";
const BUILT_IN = " (built in)"; // at the end of the small model's name

function tell(detail) {
    app.extensionManager?.toast?.add({ severity: "warn", summary: "Ovis-U1 Load Model", detail, life: 8000 });
}

function choose(node) {
    const widget = node.widgets?.find((w) => w.name === "model_name");
    const offered = widget?.options?.values ?? [];
    if (!widget || widget.value !== NAMED || offered.includes(NAMED)) return;
    const other = offered.find((name) => !name.endsWith(BUILT_IN));
    if (other) {
        widget.value = other;
        widget.callback?.(other); // Nodes 2.0 of older pages shows the new value only then
        tell(`${NAMED} was not found; ${other} was chosen instead.`);
        return;
    }
    const small = offered.length
        ? ` To try the workflow now, choose ${offered[0]}: it draws flat shapes at 128 x 128.`
        : "";
    tell(`${NAMED} was not found. Add the node Ovis-U1 Download and run it, then press R.${small}`);
}

app.registerExtension({
    name: "OvisU1.Model",
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (nodeData.name !== "OvisU1Loader") return;
        const { onConfigure } = nodeType.prototype;
        nodeType.prototype.onConfigure = function (...args) {
            onConfigure?.apply(this, args);
            choose(this);
        };
    },
});
