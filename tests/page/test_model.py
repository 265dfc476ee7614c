"""A workflow whose model is not there, on the page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workspace
from comfy_server import ComfyServer
from helpers.browser import drop, open_dropped, set_settings, wait_for_nodes
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in
from workflow_runner import workflow_of

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

MODEL = """window.app.graph._nodes.find((n) => n.type === "OvisU1Loader")
    .widgets.find((w) => w.name === "model_name").value"""
# Notes each node that the page configures, which is when the extension has looked at the model.
WATCH = """() => {
    const type = window.LiteGraph.registered_node_types.OvisU1Loader, hook = type.prototype.onConfigure;
    window.checkedNodes = [];
    type.prototype.onConfigure = function (...args) {
        hook.apply(this, args);
        window.checkedNodes.push(this.comfyClass);
    };
}"""
SAID = (
    "Ovis-U1-3B was not found. Add the node Ovis-U1 Download and run it, then press R. To try the workflow now, choose "
    f"{built_in.NAME}"
)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI into which the pack has just been installed, without any other model."""
    base = workspace.make_base(tmp_path_factory.mktemp("bare"), ROOT, comfyui_path())
    with ComfyServer(comfyui_path(), base, ["--cpu"]) as running:
        set_settings(running, {"Comfy.TutorialCompleted": True})
        yield running


def test_message_for_a_workflow_whose_model_is_not_there(page: Any, shots: Path) -> None:
    """The model's name stays, so that the workflow runs after the download."""
    open_dropped(page, "text_to_image")
    page.get_by_text(SAID).first.wait_for()
    page.screenshot(path=shots / "model_missing.png")
    assert page.evaluate(MODEL) == "Ovis-U1-3B"


def test_no_message_for_a_model_that_is_there(page: Any, ready: ComfyServer) -> None:
    page.evaluate(WATCH)
    workflow = workflow_of("text_to_image", ready.object_info(), built_in.NAME)
    drop(page, json.dumps(workflow).encode(), "built_in.json", "application/json")
    wait_for_nodes(page, len(workflow["nodes"]))
    page.wait_for_function("() => window.checkedNodes.includes('OvisU1Loader')")
    page.wait_for_timeout(1000)
    assert page.evaluate(MODEL) == built_in.NAME
    assert page.get_by_text(SAID).count() == 0
