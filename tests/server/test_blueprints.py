"""The blueprints that ComfyUI lists: they agree with the nodes and give right results on the small model."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import flat_shapes
import pytest

import blueprints
import node_texts
import workspace
from comfy_server import ComfyServer
from helpers.graphs import Graph
from helpers.paths import ROOT
from helpers.scenes import ASKS_FOR_TRIANGLE, SQUARE, TRIANGLE, scene_in, upload_square
from ovis_core.weights import built_in
from workflow_api import WORKFLOWS, to_api

NAMES = sorted(blueprints.BLUEPRINTS)
WORDS = {
    "Ovis-U1 generate": {"OvisU1TextEncode": {"prompt": ASKS_FOR_TRIANGLE}},
    "Ovis-U1 edit": {"OvisU1EditEncode": {"prompt": "make the square red"}},
    "Ovis-U1 ask": {"OvisU1Understand": {"prompt": "Describe this image."}},
}


def read(name: str) -> dict[str, Any]:
    return json.loads((blueprints.FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def inside(blueprint: dict[str, Any]) -> dict[str, Any]:
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    return subgraph


def prompt(name: str, info: dict[str, Any]) -> Graph:
    """The nodes inside as a prompt, with the values that they have in the file."""
    subgraph = inside(read(name))
    ends = {subgraph["inputNode"]["id"], subgraph["outputNode"]["id"]}
    links = [list(link.values()) for link in subgraph["links"] if not ends & {link["origin_id"], link["target_id"]}]
    kept = {link[0] for link in links}
    nodes = [
        {**node, "inputs": [slot for slot in node["inputs"] if slot["link"] is None or slot["link"] in kept]}
        for node in subgraph["nodes"]
    ]
    return Graph(to_api({"nodes": nodes, "links": links}, info))


def out(name: str, slot: str) -> list[Any]:
    """The link inside to one of the blueprint's outputs."""
    subgraph = inside(read(name))
    (end,) = [end for end in subgraph["outputs"] if end["name"] == slot]
    (link,) = [link for link in subgraph["links"] if link["id"] in end["linkIds"]]
    return [str(link["origin_id"]), link["origin_slot"]]


def targets(name: str, slot: str) -> list[tuple[str, str]]:
    """Node and input inside to which one of the blueprint's inputs leads."""
    subgraph = inside(read(name))
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    (end,) = [end for end in subgraph["inputs"] if end["name"] == slot]
    found = [link for link in subgraph["links"] if link["id"] in end["linkIds"]]
    return [(str(at["target_id"]), nodes[at["target_id"]]["inputs"][at["target_slot"]]["name"]) for at in found]


@pytest.fixture(scope="module")
def source(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A picture of a blue square among ComfyUI's inputs."""
    return upload_square(server, tmp_path_factory.mktemp("pictures"))


def run(server: ComfyServer, info: dict[str, Any], name: str, source: str) -> Any:
    """The blueprint's result on the small model: an image's scene, or a text."""
    graph = prompt(name, info)
    given = {"model_name": built_in.NAME, "seed": 1, "steps": 20, "width": 128, "height": 128}
    for end in inside(read(name))["inputs"]:
        value = given.get(end["name"])
        if end["name"] == "image":
            value = [graph.add("LoadImage", image=source), 0]
        if value is not None:
            for node, slot in targets(name, end["name"]):
                graph.set_node(node, **{slot: value})
    for kind, values in WORDS[name].items():
        graph.set(kind, **values)
    (end,) = inside(read(name))["outputs"]
    if end["type"] == "STRING":
        shown = graph.add("PreviewAny", source=out(name, end["name"]))
        return server.run(graph.prompt).outputs[shown]["text"][0]
    shown = graph.add("SaveImage", images=out(name, end["name"]), filename_prefix="tests/blueprint")
    (entry,) = server.run(graph.prompt).outputs[shown]["images"]
    return scene_in(server.image(entry))


def answer(server: ComfyServer, path: str) -> Any:
    with urllib.request.urlopen(server.url + path) as found:
        return json.load(found)


def test_comfyui_lists_the_blueprints(server: ComfyServer) -> None:
    listed = answer(server, "/global_subgraphs")
    ours = {number: entry for number, entry in listed.items() if workspace.PACK in entry["info"]["node_pack"]}
    assert sorted(entry["name"] for entry in ours.values()) == NAMES
    for number, entry in ours.items():
        data = answer(server, f"/global_subgraphs/{number}")["data"]
        assert json.loads(data) == read(entry["name"])


def test_files_are_made_from_the_workflows() -> None:
    """Run `python scripts/blueprints.py` after a change of a workflow."""
    made = blueprints.texts()
    assert {file.name for file in blueprints.FOLDER.iterdir()} == {file.name for file in made}
    for file, text in made.items():
        assert file.read_text(encoding="utf-8") == text, file.name


@pytest.mark.parametrize("name", [*NAMES, *sorted(file.stem for file in WORKFLOWS.glob("*.json"))])
def test_windows_allows_the_file_name(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9 -]+", name)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_inside_agree_with_their_schemas(info: dict[str, Any], name: str) -> None:
    subgraph = inside(read(name))
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    for node in nodes.values():
        schema = info[node["type"]]
        offered = {name: (kind, options) for name, kind, options, _ in node_texts.inputs_of(schema)}
        for slot in node["inputs"]:
            kind = offered[slot["name"]][0]
            assert slot["type"] == ("COMBO" if isinstance(kind, list) else kind), (node["type"], slot["name"])
        assert [slot["type"] for slot in node["outputs"]] == schema["output"]
        controls = sum(bool(options.get("control_after_generate")) for _, options in offered.values())
        values = [name for name, spec in offered.items() if is_widget(spec)]
        assert len(node["widgets_values"]) == len(values) + controls, node["type"]
    for link in subgraph["links"]:
        if link["origin_id"] in nodes:
            assert nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["type"] == link["type"]
        else:
            end = subgraph["inputs"][link["origin_slot"]]
            assert link["origin_id"] == subgraph["inputNode"]["id"]
            assert (end["type"], link["id"] in end["linkIds"]) == (link["type"], True)
        if link["target_id"] in nodes:
            slot = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert (slot["type"], slot["link"]) == (link["type"], link["id"])
        else:
            end = subgraph["outputs"][link["target_slot"]]
            assert link["target_id"] == subgraph["outputNode"]["id"]
            assert (end["type"], link["id"] in end["linkIds"]) == (link["type"], True)


def is_widget(spec: list[Any]) -> bool:
    return isinstance(spec[0], list) or spec[0] in {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.mark.parametrize("name", NAMES)
def test_only_the_image_must_be_connected(info: dict[str, Any], name: str) -> None:
    graph = prompt(name, info)
    given = {place for end in inside(read(name))["inputs"] for place in targets(name, end["name"])}
    for node, entry in graph.prompt.items():
        for needed in info[entry["class_type"]]["input"]["required"]:
            assert needed in entry["inputs"] or (node, needed) in given, (entry["class_type"], needed)
    (blueprint,) = read(name)["nodes"]
    sockets = {slot["name"] for slot in blueprint["inputs"] if "widget" not in slot}
    assert sockets <= {"image"}


@pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")
def test_results_are_right(server: ComfyServer, info: dict[str, Any], source: str) -> None:
    drawn = run(server, info, "Ovis-U1 generate", source)
    assert flat_shapes.same(drawn, TRIANGLE)
    edited = run(server, info, "Ovis-U1 edit", source)
    assert flat_shapes.same(edited, SQUARE.change(colour="red"))
    assert flat_shapes.kept(edited, SQUARE)
    assert "a blue square on a white background" in run(server, info, "Ovis-U1 ask", source)


def test_docs_name_each_blueprint() -> None:
    page = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"*{name}*" in page, name
