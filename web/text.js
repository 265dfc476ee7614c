// Keeps the text that a node of this pack shows: on a cached run, after a reload and in a saved workflow.
//
// While text is generated, the page shows it in its own widget, which is not kept and shows the text as HTML. This script
// replaces it with a field, as in Preview as Text, and stores the text in the node's properties, which a workflow saves.

import { app } from "../../scripts/app.js";

const WIDGET = "$$node-text-preview"; // the page writes progress text into a widget of this name
const PROPERTY = "ovis_u1_text";
const GROWING = "ovis_u1_text"; // key of a text in a node's output that nodes made by this one have completed
const LEFT = "OvisU1.text"; // key in the tab's storage for the texts of a page that is being closed
const root = () => app.rootGraph ?? app.graph;
const shows = (node) => node?.comfyClass?.startsWith("OvisU1") && node.constructor.nodeData?.output_node;

function addField(node) {
    const element = document.createElement("textarea");
    element.className = "comfy-multiline-input";
    element.readOnly = true;
    element.placeholder = "The text appears here when the node runs.";
    element.style.cssText = "width: 100%; height: 100%; min-height: 56px; resize: none";
    const widget = node.addDOMWidget(WIDGET, "ovis_u1_text", element, {
        getMinHeight: () => 56,
        getValue: () => element.value,
        setValue: (text) => (element.value = text),
        // Not in the prompt, where a changed text would run the node again, and not in the workflow's widget values.
        serialize: false,
    });
    widget.serialize = false;
    widget.label = "text"; // the panel of parameters shows the label, not the name
    // At the end of a run, newer pages remove the widget of this name from all nodes. A node that leaves its graph removes it too.
    const { onRemove } = widget;
    widget.onRemove = function (...args) {
        onRemove?.apply(this, args);
        // Later, because Nodes 2.0 would keep showing the old field if it did not see that it is gone.
        setTimeout(() => {
            if (node.graph?.getNodeById(node.id) !== node || node.widgets.some((w) => w.name === WIDGET)) return;
            addField(node);
            show(node, node.properties[PROPERTY] ?? "");
        });
    };
}

function show(node, text) {
    const widget = node.widgets.find((w) => w.name === WIDGET);
    if (widget) widget.value = text;
}

function keep(node, output) {
    const shown = output?.text ?? output?.[GROWING];
    if (!shown) return;
    const text = [shown].flat(2).join("\n\n");
    show(node, text);
    if (node.properties[PROPERTY] === text) return;
    node.properties[PROPERTY] = text;
    // The page saves only changes that its tracker has recorded.
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

// All nodes, including those in subgraphs, with their names in the page's outputs.
function nodes(graph = root()) {
    return graph.nodes.flatMap((node) => [
        { node, locator: graph === root() ? `${node.id}` : `${graph.id}:${node.id}` },
        ...(node.subgraph ? nodes(node.subgraph) : []),
    ]);
}

// The page saves a workflow half a second after a change. A reload can happen earlier.
function leave() {
    const texts = nodes().filter(({ node }) => shows(node) && node.properties[PROPERTY]);
    const found = Object.fromEntries(texts.map(({ node, locator }) => [locator, { text: [node.properties[PROPERTY]] }]));
    sessionStorage.setItem(LEFT, JSON.stringify({ graph: root().id, outputs: found }));
}

function takeUp(outputs) {
    for (const { node, locator } of nodes()) if (shows(node) && outputs?.[locator]) keep(node, outputs[locator]);
}

let left = JSON.parse(sessionStorage.getItem(LEFT) ?? "null");
sessionStorage.removeItem(LEFT);
addEventListener("pagehide", leave);

app.registerExtension({
    name: "OvisU1.Text",
    beforeRegisterNodeDef(nodeType, nodeData) {
        if (!nodeData.name.startsWith("OvisU1") || !nodeData.output_node) return;
        const { onConfigure, onExecuted, onNodeCreated } = nodeType.prototype;
        nodeType.prototype.onNodeCreated = function (...args) {
            onNodeCreated?.apply(this, args);
            addField(this);
        };
        nodeType.prototype.onConfigure = function (...args) {
            onConfigure?.apply(this, args);
            const text = this.properties?.[PROPERTY];
            if (typeof text === "string") show(this, text);
        };
        nodeType.prototype.onExecuted = function (...args) {
            onExecuted?.apply(this, args);
            keep(this, args[0]);
        };
    },
    afterConfigureGraph() {
        if (!left || left.graph !== root().id) return;
        takeUp(left.outputs);
        left = null;
    },
    // Called for another tab of the page, or a job that is opened from the queue.
    onNodeOutputsUpdated: takeUp,
});
