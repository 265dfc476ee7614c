"""The layout of the workflows."""

from __future__ import annotations

import re

import pytest

import workspace
from blueprints import BLUEPRINTS
from helpers.canvas import READABLE, overlaps, strays
from helpers.graphs import NAMES
from helpers.paths import ROOT
from workflow_api import TITLES, WORKFLOWS, read_workflow

# A node's color shows its kind: loading, text input, making, showing, or note. All others have #223.
ROLES = {
    "#323": {"OvisU1Loader", "LoraModelLoader"},
    "#232": {
        "OvisU1TextEncode",
        "OvisU1EditEncode",
        "OvisU1Understand",
        "OvisU1Judge",
        "OvisU1Improve",
        "PrimitiveStringMultiline",
        "StringConcatenate",
    },
    "#322": {"OvisU1Sampler", "TrainLoraNode"},
    "#233": {
        "OvisU1Decode",
        "SaveImage",
        "PreviewImage",
        "PreviewAny",
        "SaveLoRA",
        "LossGraphNode",
        "SaveImageTextDataSetToFolder",
    },
    "#432": {"MarkdownNote"},
}


@pytest.mark.parametrize("name", NAMES)
def test_workflow_layout(name: str) -> None:
    workflow = read_workflow(name)
    assert overlaps(workflow["nodes"]) == []
    assert strays(workflow["nodes"], workflow["groups"]) == []
    for node in workflow["nodes"]:
        role = next((color for color, types in ROLES.items() if node["type"] in types), "#223")
        assert node["color"] == role, node["type"]
        if node["type"] == "MarkdownNote":
            assert "`" not in node["widgets_values"][0], "Nodes 2.0 draws code in a note as blue on blue"
    # No link leads back to a column further left.
    places = {node["id"]: node for node in workflow["nodes"]}
    for _, source, _, target, *_ in workflow["links"]:
        right = places[target]["pos"][0] + places[target]["size"][0]
        assert places[source]["pos"][0] < right, (source, target)
    assert workflow["extra"]["ds"]["scale"] >= READABLE


@pytest.mark.parametrize("name", NAMES)
def test_nodes_in_workflows_name_their_pack(name: str) -> None:
    """The page looks a missing node's pack up by this id; several packs have nodes for this model."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pack, version = (re.search(rf'(?m)^{key} = "(.+)"', project)[1] for key in ("name", "version"))
    assert pack == workspace.PACK
    for node in read_workflow(name)["nodes"]:
        ours = node["type"].startswith("OvisU1")
        named = node["properties"]
        assert named["cnr_id"] == (pack if ours else "comfy-core"), node["type"]
        if ours:
            assert numbers(named["ver"]) <= numbers(version), "saved with a version that does not exist yet"
        else:
            assert numbers(named["ver"]) >= (0, 3, 75), "saved with a ComfyUI that the pack does not run in"


@pytest.mark.parametrize("name", ["text_to_image", "edit", "understand"])
def test_app_mode_shows_widgets_and_a_result_that_exist(name: str) -> None:
    workflow = read_workflow(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    shown = workflow["extra"]["linearData"]
    for number, widget in shown["inputs"]:
        node = nodes[number]
        if node["type"] == "OvisU1Loader":  # the file lists no inputs of a node without links
            assert widget == "model_name"
        else:
            (slot,) = [slot for slot in node["inputs"] if slot["name"] == widget]
            assert (slot["widget"]["name"], slot["link"]) == (widget, None)
    assert [nodes[number]["type"] for number in shown["outputs"]] in (["SaveImage"], ["OvisU1Understand"])
    assert "linearMode" not in workflow["extra"], "the graph opens first"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_readme_names_the_installed_pack() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"`comfy node install {workspace.PACK}`" in readme
    assert f"rename the pack's folder to `{workspace.PACK}`" in readme


def test_workflow_file_names_are_titles() -> None:
    """Every file there is a template: the server lists every *.json of the folder, also an index.json."""
    assert {file.stem for file in WORKFLOWS.glob("*.json")} == set(TITLES.values())
    assert {file.stem for file in WORKFLOWS.glob("*.jpg")} == set(TITLES.values())
    # A page that is loaded again would take the blueprint for the open workflow.
    assert not BLUEPRINTS.keys() & set(TITLES.values())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for title in TITLES.values():
        assert title.startswith("Ovis-U1 ")
        assert "_" not in title
        assert f"*{title.removeprefix('Ovis-U1 ')}*" in readme, title
