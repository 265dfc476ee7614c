"""ComfyUI's page in a real browser: its settings, what tests do there and read from it."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

from comfy_server import ComfyServer
from workflow_api import read_workflow

from .paths import ROOT

SHOTS = ROOT / "output" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# No sandbox: the tests may run as root. The rest keeps the browser from looking for its maker's servers.
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 60_000  # ms
WINDOW = {"width": 1440, "height": 900}  # of a small laptop
CANVAS = "#graph-canvas"
FOUND = ".p-autocomplete-option, [data-testid=result-item]"  # entries that the search for nodes has found
CLASSIC, NODES_2 = "classic", "nodes_2"  # nodes drawn on the canvas, or as elements of the page ("Nodes 2.0")
ELEMENTS = "document.querySelectorAll('[data-node-id]').length"
# Widgets of a quick run on the small model.
SMALL = {
    "OvisU1Loader": {"model_name": "tiny"},
    "OvisU1Sampler": {"steps": 2},
    "PrimitiveInt": {"value": 128},
    "TrainLoraNode": {"steps": 3},
    "OvisU1TextEncode": {"width": 128, "height": 128},
    "EmptyLatentImage": {"width": 128, "height": 128},
    "OvisU1Understand": {"max_new_tokens": 8},
    "OvisU1Improve": {"steps": 2, "rounds": 1},
}
# Nodes as they are drawn. An element of Nodes 2.0 includes its title, and may be larger than the graph says.
NODES = """() => {
    const {ds, canvas} = window.app.canvas, origin = canvas.getBoundingClientRect();
    const title = window.LiteGraph.NODE_TITLE_HEIGHT;
    return window.app.graph._nodes.map((n) => {
        const box = document.querySelector(`[data-node-id="${n.id}"]`)?.getBoundingClientRect();
        if (!box) return {id: n.id, type: n.type, pos: [...n.pos], size: [...n.size]};
        const x = (box.left - origin.left) / ds.scale - ds.offset[0];
        const y = (box.top - origin.top) / ds.scale - ds.offset[1] + title;
        return {id: n.id, type: n.type, pos: [x, y], size: [box.width / ds.scale, box.height / ds.scale - title]};
    });
}"""
GROUPS = "window.app.graph._groups.map((g) => ({title: g.title, bounding: [...g._bounding]}))"
# Values that are wider than their fields.
CUT = """[...document.querySelectorAll("[data-node-id] input")]
    .filter((field) => field.value && field.scrollWidth > field.clientWidth + 1)
    .map((field) => [field.closest("[data-node-id]").dataset.nodeId, field.value])"""
# Whether every image and text has arrived at the node that shows it.
SHOWN = """() => window.app.graph._nodes.every((n) => {
    const element = document.querySelector(`[data-node-id="${n.id}"]`);
    const images = element ? [...element.querySelectorAll("img")].filter((image) => image.naturalWidth > 0) : n.imgs;
    return (!["SaveImage", "PreviewImage"].includes(n.type) || images?.length > 0) &&
        (n.type !== "OvisU1Understand" || n.properties.ovis_u1_text) &&
        (n.type !== "PreviewAny" || n.widgets.some((w) => typeof w.value === "string" && w.value !== ""));
})"""


def set_settings(server: ComfyServer, settings: dict[str, Any]) -> None:
    """Settings of the page, which the server keeps."""
    data = json.dumps(settings).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/settings", data, method="POST")).close()


def set_widgets(page: Any, values: dict[str, dict[str, Any]]) -> None:
    """Class of nodes -> values of their widgets."""
    page.evaluate(
        """(all) => { for (const [type, values] of Object.entries(all))
            window.app.graph._nodes.filter((n) => n.type === type).forEach((n) =>
                n.widgets.forEach((w) => { if (w.name in values) w.value = values[w.name]; })); }""",
        values,
    )


def run(page: Any) -> None:
    page.evaluate("() => { window.app.graph.setDirtyCanvas(true, true); window.app.queuePrompt(0, 1); }")


def drop(page: Any, data: bytes, name: str, kind: str) -> None:
    """Lets a file fall on the canvas."""
    transfer = page.evaluate_handle(
        """([data, name, type]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type}));
            return transfer;
        }""",
        [base64.b64encode(data).decode(), name, kind],
    )
    page.dispatch_event(CANVAS, "drop", {"dataTransfer": transfer, "clientX": 900, "clientY": 500})


def open_dropped(page: Any, name: str) -> dict[str, Any]:
    """Opens one of the pack's workflows."""
    workflow = read_workflow(name)
    drop(page, json.dumps(workflow).encode(), f"{name}.json", "application/json")
    wait_for_nodes(page, len(workflow["nodes"]))
    return workflow


def wait_for_nodes(page: Any, count: int) -> None:
    page.wait_for_function(f"window.app.graph._nodes.length === {count}")
    page.wait_for_function(f"[0, {count}].includes({ELEMENTS})")
    page.wait_for_timeout(500)  # nodes take their sizes when they are drawn


def select(page: Any, kind: str) -> None:
    page.evaluate("(type) => window.app.canvas.selectNode(window.app.graph._nodes.find((n) => n.type === type))", kind)


def open_search(page: Any) -> Any:
    """Double-clicks the canvas until the page reacts; returns the field to type into."""
    from playwright.sync_api import TimeoutError

    field = page.locator(".node-search-box-dialog-mask input, [role=dialog] input").first
    for _ in range(20):
        page.mouse.dblclick(1000, 500)
        try:
            field.wait_for(timeout=3000)
        except TimeoutError:
            continue
        return field
    raise AssertionError("a double click on the canvas opens no search")
