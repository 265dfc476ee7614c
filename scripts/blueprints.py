"""Writes the blueprints in subgraphs/ from the workflows: a whole task as one node that users can open.

    python scripts/blueprints.py

ComfyUI lists the files of this folder beside its own blueprints and shows their file names. None may have the name of
a workflow: after a reload the page would put the workflow of that name into the blueprint. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from workflow_api import NOTES, WORKFLOWS, read_workflow

FOLDER = WORKFLOWS.parent / "subgraphs"
CATEGORY = "Ovis-U1"
# Nodes that stay outside: their links become the blueprint's inputs and outputs.
OUTSIDE = {"LoadImage", "SaveImage", "PreviewAny", "PrimitiveInt"}
INPUT_NODE, OUTPUT_NODE = -10, -20  # ids of the two ends of a subgraph, in the page's files
END_WIDTH, SLOT_HEIGHT, GAP = 128, 20, 80  # pixels of these ends, and their distance from the nodes
SIZE = [400, 320]  # of the one node outside; the page makes it larger if its widgets need more
# Inputs that the page of ComfyUI 0.3.75 has before the widgets of these nodes. It finds a blueprint's widgets by their
# place, so the file lists these inputs too.
FURTHER = {key: [f"images.image_{n}" for n in (2, 3, 4)] for key in ("OvisU1EditEncode", "OvisU1Understand")}
MARGIN, HEADING = 20, 64  # pixels from a group's edge to its nodes; the titles of group and node
LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")

Tree = dict[str, Any]


@dataclass(frozen=True)
class Widget:
    """A widget inside, of the one node of a class."""

    kind: str
    name: str


@dataclass(frozen=True)
class Links:
    """The links inside that come from a node outside, which is named by its class or title."""

    node: str


@dataclass(frozen=True)
class Blueprint:
    """One file, and the workflow that it is made from.

    inputs   name outside -> what it sets inside; in the order on the page
    outputs  name outside -> class of the node that stays outside
    """

    workflow: str
    description: str
    aliases: tuple[str, ...]
    inputs: dict[str, Widget | Links]
    outputs: dict[str, str]


MODEL = {"model_name": Widget("OvisU1Loader", "model_name")}
RUN = {"seed": Widget("OvisU1Sampler", "seed"), "steps": Widget("OvisU1Sampler", "steps")}
BLUEPRINTS = {
    "Ovis-U1 generate": Blueprint(
        workflow="text_to_image",
        description="Makes an image from a prompt with Ovis-U1. Connect Save Image. The model is loaded inside.",
        aliases=("text to image", "t2i", "generate image"),
        inputs={
            "prompt": Widget("OvisU1TextEncode", "prompt"),
            "width": Links("Width"),
            "height": Links("Height"),
            **RUN,
            **MODEL,
        },
        outputs={"image": "SaveImage"},
    ),
    "Ovis-U1 edit": Blueprint(
        workflow="edit",
        description=(
            "Edits an image by an instruction with Ovis-U1, and returns it at the size of the source image. Connect "
            "Load Image and Save Image. The model is loaded inside."
        ),
        aliases=("edit image", "image editing", "image to image"),
        inputs={
            "image": Links("LoadImage"),
            "prompt": Widget("OvisU1EditEncode", "prompt"),
            "txt_cfg": Widget("OvisU1Sampler", "txt_cfg"),
            "img_cfg": Widget("OvisU1Sampler", "img_cfg"),
            **RUN,
            **MODEL,
        },
        outputs={"image": "SaveImage"},
    ),
    "Ovis-U1 ask": Blueprint(
        workflow="understand",
        description=(
            "Answers a question about an image with Ovis-U1. Connect Load Image, and Preview as Text for the answer. "
            "The model is loaded inside."
        ),
        aliases=("caption", "describe image", "vqa", "image to text"),
        inputs={
            "image": Links("LoadImage"),
            "prompt": Widget("OvisU1Understand", "prompt"),
            "max_new_tokens": Widget("OvisU1Understand", "max_new_tokens"),
            "thinking": Widget("OvisU1Understand", "thinking"),
            **MODEL,
        },
        outputs={"answer": "PreviewAny"},
    ),
}


def main() -> None:
    """Writes the files that differ, and prints their names."""
    FOLDER.mkdir(exist_ok=True)
    for file, text in texts().items():
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8", newline="\n")
            print(file.relative_to(FOLDER.parent))


def texts() -> dict[Path, str]:
    """Every file, with its contents."""
    return {FOLDER / f"{name}.json": json.dumps(make(name), indent=1) + "\n" for name in BLUEPRINTS}


def make(name: str) -> Tree:
    """One blueprint, in the page's form: a workflow of one node, whose type is the subgraph in its definitions."""
    plan = BLUEPRINTS[name]
    workflow = read_workflow(plan.workflow)
    subgraph = _subgraph(name, plan, workflow)
    widgets = {slot["name"] for slot in subgraph["inputs"] if _target(subgraph, slot).get("widget")}
    node = {
        "id": 1,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": SIZE,
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {"name": slot["name"], "type": slot["type"], "link": None}
            | ({"widget": {"name": slot["name"]}} if slot["name"] in widgets else {})
            for slot in subgraph["inputs"]
        ],
        "outputs": [{"name": slot["name"], "type": slot["type"], "links": []} for slot in subgraph["outputs"]],
        "properties": {},
        "widgets_values": [],
        "title": name,
    }
    return {
        "id": str(uuid5(UUID(workflow["id"]), "blueprint")),
        "revision": 0,
        "last_node_id": node["id"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {"BlueprintDescription": plan.description, "BlueprintSearchAliases": list(plan.aliases)},
        "version": 0.4,
    }


def _subgraph(name: str, plan: Blueprint, workflow: Tree) -> Tree:
    """The workflow's nodes without those outside, with the plan's inputs and outputs."""
    number = UUID(workflow["id"])
    nodes = {node["id"]: _with_further(node) for node in workflow["nodes"] if node["type"] not in NOTES | OUTSIDE}
    outside = {node["id"]: node for node in workflow["nodes"] if node["type"] in OUTSIDE}
    links = {link[0]: dict(zip(LINK, link, strict=True)) for link in workflow["links"]}
    boxes = [(*node["pos"], *node["size"]) for node in nodes.values()]
    middle = round(sum(y + height / 2 for _, y, _, height in boxes) / len(boxes))
    ends = {"inputs": [], "outputs": []}

    for slot, (outer, inner) in enumerate(plan.inputs.items()):
        if isinstance(inner, Links):
            made = [link for link in links.values() if _is(outside.get(link["origin_id"]), inner.node)]
        else:
            made = [_link_to_widget(nodes, links, inner)]
        for link in made:
            link |= {"origin_id": INPUT_NODE, "origin_slot": slot}
        kind = _slot(nodes, made[0])["type"]
        ends["inputs"].append(_end(number, "input", outer, kind, [link["id"] for link in made]))
    for slot, (outer, inner) in enumerate(plan.outputs.items()):
        (link,) = [link for link in links.values() if _is(outside.get(link["target_id"]), inner)]
        link |= {"target_id": OUTPUT_NODE, "target_slot": slot}
        ends["outputs"].append(_end(number, "output", outer, link["type"], [link["id"]]))

    groups = [group for group in (_fit(group, nodes.values()) for group in workflow["groups"]) if group]
    left, right = min(x for x, *_ in boxes), max(x + width for x, _, width, _ in boxes)
    return {
        "id": str(uuid5(number, "subgraph")),
        "version": 1,
        "state": {
            "lastGroupId": max(group["id"] for group in groups),
            "lastNodeId": max(nodes),
            "lastLinkId": max(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "category": CATEGORY,
        "description": plan.description,
        "inputNode": _end_node(INPUT_NODE, left - GAP - END_WIDTH, middle, len(plan.inputs)),
        "outputNode": _end_node(OUTPUT_NODE, right + GAP, middle, len(plan.outputs)),
        **ends,
        "widgets": [],
        "nodes": [{**node, "order": order} for order, node in enumerate(nodes.values())],
        "groups": groups,
        "links": [links[number] for number in sorted(links)],
        "extra": {},
    }


def _with_further(node: Tree) -> Tree:
    """The node with its inputs of `FURTHER`."""
    further = [{"name": name, "type": "IMAGE", "link": None} for name in FURTHER.get(node["type"], ())]
    sockets = [slot for slot in node["inputs"] if "widget" not in slot]
    return {**node, "inputs": sockets + further + node["inputs"][len(sockets) :]}


def _link_to_widget(nodes: dict[int, Tree], links: dict[int, Tree], widget: Widget) -> Tree:
    """A new link to a widget."""
    (node,) = [node for node in nodes.values() if node["type"] == widget.kind]
    if not node["inputs"]:  # the workflow need not list the widgets of a loader, which are choices
        node["inputs"].append({"name": widget.name, "type": "COMBO", "link": None, "widget": {"name": widget.name}})
    (place,) = [place for place, slot in enumerate(node["inputs"]) if slot["name"] == widget.name]
    slot = node["inputs"][place]
    slot["link"] = max(links) + 1
    values = (slot["link"], None, None, node["id"], place, slot["type"])
    links[slot["link"]] = dict(zip(LINK, values, strict=True))
    return links[slot["link"]]


def _is(node: Tree | None, name: str) -> bool:
    """Whether a node has this class or title."""
    return node is not None and name in (node["type"], node.get("title"))


def _slot(nodes: dict[int, Tree], link: Tree) -> Tree:
    """The input that a link leads to."""
    return nodes[link["target_id"]]["inputs"][link["target_slot"]]


def _target(subgraph: Tree, end: Tree) -> Tree:
    """The first input inside that one of the subgraph's inputs leads to."""
    (link,) = [link for link in subgraph["links"] if link["id"] == end["linkIds"][0]]
    return _slot({node["id"]: node for node in subgraph["nodes"]}, link)


def _end(number: UUID, side: str, name: str, kind: str, links: list[int]) -> Tree:
    """One input or output of a subgraph."""
    return {"id": str(uuid5(number, f"{side} {name}")), "name": name, "type": kind, "linkIds": links}


def _end_node(number: int, left: int, middle: int, slots: int) -> Tree:
    """The node inside that has the subgraph's inputs or outputs."""
    height = SLOT_HEIGHT * (slots + 2)
    return {"id": number, "bounding": [left, middle - height // 2, END_WIDTH, height]}


def _fit(group: Tree, nodes: Iterable[Tree]) -> Tree | None:
    """A group around those of its nodes that are still there; None if there are none."""
    x, y, width, height = group["bounding"]
    within = [node for node in nodes if x <= node["pos"][0] < x + width and y <= node["pos"][1] < y + height]
    if not within:
        return None
    left, top = (min(node["pos"][axis] for node in within) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in within) for axis in (0, 1))
    bounding = [left - MARGIN, top - HEADING, right - left + 2 * MARGIN, bottom - top + HEADING + MARGIN]
    return {**group, "bounding": bounding}


if __name__ == "__main__":
    main()
