"""A workflow whose model is not there, on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import workspace
from blueprints import BLUEPRINTS, make
from comfy_server import ComfyServer
from helpers.browser import drop, open_dropped, set_settings, wait_for_nodes
from helpers.device import DEVICE_ARGS
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in
from workflow_api import read_workflow
from workflow_runner import workflow_of

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

MODEL = """window.app.graph._nodes.find((n) => n.type === "OvisU1Loader")
    .widgets.find((w) => w.name === "model_name").value"""
# Counts how often the extension has looked for the model.
WATCH = """() => {
    const extension = window.app.extensions.find((one) => one.name === "OvisU1.Model");
    const hook = extension.afterConfigureGraph;
    window.checked = 0;
    extension.afterConfigureGraph = function (...rest) {
        hook.apply(this, rest);
        window.checked += 1;
    };
}"""
# Moves a node, as a step that the page can undo.
MOVE = """() => {
    window.app.graph._nodes[0].pos[0] += 37;
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
    (tracker.captureCanvasState ?? tracker.checkState).call(tracker);
}"""
OUTSIDE = """window.app.graph._nodes.find((n) => n.subgraph).widgets.find((w) => w.name === "model_name").value"""
# Queues the prompt, and notes whether this page says so first.
QUEUE = """() => {
    window.queueing = false;
    window.comfyAPI.api.api.addEventListener("promptQueueing", () => (window.queueing = true));
    window.app.queuePrompt(0, 1);
}"""
TOASTS = ".p-toast-detail"
SAID = (
    "Ovis-U1-3B was not found. Add the node Ovis-U1 Download and run it, then press R. To try the workflow now, choose "
    f"{built_in.NAME}"
)


def says_when_a_run_starts() -> bool:
    package = find_spec("comfyui_frontend_package")
    scripts = Path(package.origin).parent.rglob("*.js") if package and package.origin else ()
    return any(b"promptQueueing" in script.read_bytes() for script in scripts)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI into which the pack has just been installed, without any other model."""
    base = workspace.make_base(tmp_path_factory.mktemp("bare"), ROOT, comfyui_path())
    with ComfyServer(comfyui_path(), base, DEVICE_ARGS) as running:
        set_settings(running, {"Comfy.TutorialCompleted": True})
        yield running


def open_checked(page: Any, workflow: dict[str, Any]) -> None:
    """Opens a workflow, and waits until the extension has looked for its model."""
    page.evaluate(WATCH)
    drop(page, json.dumps(workflow).encode(), "another.json", "application/json")
    wait_for_nodes(page, len(workflow["nodes"]))
    page.wait_for_function("window.checked > 0")


def test_message_for_a_workflow_whose_model_is_not_there(page: Any, shots: Path) -> None:
    """The model's name stays, so that the workflow runs after the download."""
    open_dropped(page, "text_to_image")
    page.get_by_text(SAID).first.wait_for()
    page.screenshot(path=shots / "model_missing.png")
    assert page.evaluate(MODEL) == "Ovis-U1-3B"


@pytest.mark.skipif(not says_when_a_run_starts(), reason="this page does not say when a run starts")
def test_the_message_goes_when_a_run_starts(page: Any) -> None:
    """It would cover the page's own error."""
    open_dropped(page, "edit")
    page.get_by_text(SAID).first.wait_for()
    page.evaluate(QUEUE)
    page.wait_for_timeout(1500)  # by itself it goes after eight seconds
    assert page.evaluate("window.queueing")
    assert page.get_by_text(SAID).count() == 0


def test_no_message_for_a_model_that_is_there(page: Any, ready: ComfyServer) -> None:
    open_checked(page, workflow_of("text_to_image", ready.object_info(), built_in.NAME))
    page.wait_for_timeout(1000)
    assert page.evaluate(MODEL) == built_in.NAME
    assert page.get_by_text(SAID).count() == 0


@pytest.fixture
def other(ready: ComfyServer, release: Path) -> Iterator[str]:
    """Another model than the one that the workflows name; before `page`, which lists the models when it opens."""
    folder = ready.base / "models" / "ovis_u1" / "mine"
    workspace.link_folder(release, folder)
    yield folder.name
    workspace.remove(folder)


def loaded(page: Any) -> list[Any]:
    """The models that a run would load."""
    prompt = page.evaluate("(async () => (await window.app.graphToPrompt()).output)()")
    return [node["inputs"]["model_name"] for node in prompt.values() if node["class_type"] == "OvisU1Loader"]


@pytest.mark.parametrize("name", sorted(BLUEPRINTS))
def test_another_model_is_chosen_for_a_blueprint(other: str, page: Any, name: str) -> None:
    """A saved workflow with a blueprint: the value of the node outside is the one that is used."""
    open_checked(page, make(name))
    page.get_by_text(f"Ovis-U1-3B was not found; {other} was chosen instead.").first.wait_for()
    assert page.evaluate(OUTSIDE) == other
    assert loaded(page) == [other]


def test_a_model_named_by_another_node_stays(other: str, page: Any) -> None:
    workflow = read_workflow("text_to_image")
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "OvisU1Loader")
    link = workflow["last_link_id"] = workflow["last_link_id"] + 1
    number = workflow["last_node_id"] = workflow["last_node_id"] + 1
    loader["inputs"] = [{"name": "model_name", "type": "COMBO", "link": link, "widget": {"name": "model_name"}}]
    workflow["links"].append([link, number, 0, loader["id"], 0, "COMBO"])
    output = {"name": "COMBO", "type": "COMBO", "links": [link], "widget": {"name": "model_name"}}
    primitive = {"id": number, "type": "PrimitiveNode", "pos": [-300, 0], "size": [210, 82], "flags": {}, "order": 0}
    primitive |= {"mode": 0, "outputs": [output], "properties": {}, "widgets_values": ["Ovis-U1-3B", "fixed"]}
    workflow["nodes"].append(primitive)
    open_checked(page, workflow)
    page.wait_for_timeout(1000)
    assert loaded(page) == ["Ovis-U1-3B"]
    assert page.get_by_text(f"{other} was chosen").count() == 0


def test_the_message_is_shown_once(page: Any) -> None:
    """Not for each of several loaders, and not again after each undo."""
    workflow = read_workflow("text_to_image")
    (loader,) = (node for node in workflow["nodes"] if node["type"] == "OvisU1Loader")
    second = json.loads(json.dumps(loader)) | {"id": workflow["last_node_id"] + 1}
    second["outputs"] = [slot | {"links": None} for slot in second["outputs"]]
    workflow["nodes"].append(second)
    open_checked(page, workflow)
    page.get_by_text(SAID).first.wait_for()
    assert page.locator(TOASTS).filter(has_text=SAID).count() == 1
    loads = page.evaluate("window.checked")
    page.evaluate(MOVE)
    page.evaluate("() => { window.app.extensionManager.command.execute('Comfy.Undo'); }")
    page.wait_for_function("(loads) => window.checked > loads", arg=loads)
    page.wait_for_timeout(500)
    assert page.locator(TOASTS).filter(has_text=SAID).count() == 1
