// Opens the pack's workflows and blueprints with the model that is there. They name the folder that Ovis-U1 Download makes; the same model may have
// another name here, or may not be here yet.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NAME = "model_name"; // the loader's input
const NAMED = "Ovis-U1-3B";
const BUILT_IN = " (built in)"; // at the end of the small model's name
const shown = new Set(); // messages by workflow: the page loads a workflow again for each undo and change of tabs
const root = () => app.rootGraph ?? app.graph;

function showMessage(detail) {
    const key = `${root().id} ${detail}`;
    if (shown.has(key)) return;
    shown.add(key);
    const message = { severity: "warn", summary: "Ovis-U1 Load Model", detail, life: 8000 };
    app.extensionManager?.toast?.add(message);
    // It would cover the page's own message about a prompt that cannot run. Older pages do not send this event.
    api.addEventListener("promptQueueing", () => app.extensionManager?.toast?.remove(message), { once: true });
}

const inGraphs = (graph) => graph.nodes.flatMap((node) => [node, ...(node.subgraph ? inGraphs(node.subgraph) : [])]);

// The widgets whose values an input of a node gets: its own one, or those of the nodes of its subgraph; none if it is linked to another
// node. A blueprint that is being added has no node of its subgraph yet; that node will take the value from inside.
function sources(node, name) {
    const own = node.widgets?.filter((widget) => widget.name === name) ?? [];
    const link = node.graph?.getLink(node.inputs?.find((input) => input.name === name)?.link);
    if (!link) return own;
    if (link.origin_id !== node.graph.inputNode?.id) return [];
    const outer = node.graph.inputs[link.origin_slot]?.name;
    const hosts = inGraphs(root()).filter((host) => host.subgraph === node.graph);
    return hosts.length ? hosts.flatMap((host) => sources(host, outer)) : own;
}

function choose(loader) {
    const offered = loader.widgets?.find((widget) => widget.name === NAME)?.options?.values ?? [];
    const missing = sources(loader, NAME).filter((widget) => widget.value === NAMED);
    if (!missing.length || offered.includes(NAMED)) return;
    const other = offered.find((name) => !name.endsWith(BUILT_IN));
    if (other) {
        for (const widget of missing) {
            widget.value = other;
            widget.callback?.(other); // Nodes 2.0 of older pages shows the new value only then
        }
        showMessage(`${NAMED} was not found; ${other} was chosen instead.`);
        return;
    }
    const small = offered.length ? ` To try the workflow now, choose ${offered[0]}: it draws flat shapes at 128 x 128.` : "";
    showMessage(`${NAMED} was not found. Add the node Ovis-U1 Download and run it, then press R.${small}`);
}

app.registerExtension({
    name: "OvisU1.Model",
    // For a blueprint that is added to a graph.
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (nodeData.name !== "OvisU1Loader") return;
        const { onConfigure } = nodeType.prototype;
        nodeType.prototype.onConfigure = function (...args) {
            onConfigure?.apply(this, args);
            choose(this);
        };
    },
    // For a workflow. Not loadedGraphNode, which older pages call only for nodes outside subgraphs.
    afterConfigureGraph() {
        for (const node of inGraphs(root())) if (node.comfyClass === "OvisU1Loader") choose(node);
    },
});
