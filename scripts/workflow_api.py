"""The pack's workflows, and their conversion from the page's form to the API form that a server runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
# Name in code and tests -> file. The template browser shows only the file name of a pack's workflow.
TITLES = {
    "text_to_image": "Ovis-U1 text to image",
    "edit": "Ovis-U1 edit an image",
    "edit_masked": "Ovis-U1 edit inside a mask",
    "edit_chain": "Ovis-U1 edit an image twice",
    "edit_two": "Ovis-U1 edit with two images",
    "understand": "Ovis-U1 ask about an image",
    "multi_image": "Ovis-U1 ask about several images",
    "video": "Ovis-U1 ask about a video",
    "chat": "Ovis-U1 chat about an image",
    "describe_and_redraw": "Ovis-U1 describe and redraw",
    "enrich_prompt": "Ovis-U1 enrich a prompt",
    "pick_the_best": "Ovis-U1 pick the best of four",
    "caption_folder": "Ovis-U1 caption a folder",
    "improve": "Ovis-U1 improve an image",
    "train_lora": "Ovis-U1 train a LoRA",
}
NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


def read_workflow(name: str) -> dict[str, Any]:
    """One of the pack's workflows, in the page's form."""
    return json.loads((WORKFLOWS / f"{TITLES[name]}.json").read_text(encoding="utf-8"))


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The prompt for /prompt, of a workflow without subgraphs.

    object_info  the server's answer to /object_info. Raises ValueError naming the node types that it lacks.
    """
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    missing = sorted({node["type"] for node in nodes} - object_info.keys())
    if missing:
        raise ValueError(f"the workflow needs {', '.join(missing)}, which this ComfyUI does not have; update ComfyUI.")
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in nodes:
        info = object_info[node["type"]]
        inputs = {}
        for name, spec in _inputs(info):
            if _is_widget(spec):
                inputs |= _default(name, spec)
        # A workflow that is older than its node has fewer values; the page uses the defaults for the rest.
        values = zip(widget_names(info), node.get("widgets_values", []), strict=False)
        inputs |= {name: value for name, value in values if name}
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                inputs[slot["name"]] = sources[slot["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_names(info: dict[str, Any]) -> list[str | None]:
    """The input of each entry of a node's `widgets_values`; None is the widget "control after generate".

    info  the node's entry in the server's answer to /object_info
    """
    names: list[str | None] = []
    for name, spec in _inputs(info):
        if _is_widget(spec):
            names += [name, None] if _has_control(name, spec) else [name]
    return names


def _inputs(info: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    return [pair for kind in ("required", "optional") for pair in info["input"].get(kind, {}).items()]


def _default(name: str, spec: list[Any]) -> dict[str, Any]:
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return {name: options["default"]}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    return {name: choices[0]} if choices else {}


def _has_control(name: str, spec: list[Any]) -> bool:
    """Whether the page adds the widget "control after generate" after this one."""
    said = spec[1].get("control_after_generate") if len(spec) > 1 else None
    return bool(said) if said is not None else spec[0] == "INT" and name in ("seed", "noise_seed")


def _is_widget(spec: list[Any]) -> bool:
    return (isinstance(spec[0], list) or spec[0] in WIDGETS) and not (len(spec) > 1 and spec[1].get("forceInput"))
