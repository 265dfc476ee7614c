"""Sets widgets of the pack's workflows by name, runs them in a server, and returns their images and texts."""

from __future__ import annotations

import time
from typing import Any

from comfy_prompt import Result
from comfy_server import ComfyServer
from console import UserError, bar, show
from workflow_api import read_workflow, to_api, widget_names

Workflow = dict[str, Any]
"""A workflow in the page's form."""
ObjectInfo = dict[str, Any]
"""The server's description of its nodes, by class (`ComfyServer.object_info`)."""


def workflow_of(name: str, info: ObjectInfo, model: str, seed: int | None = None, steps: int | None = None) -> Workflow:
    """One of the pack's workflows with this model; for seed and steps None keeps the workflow's value."""
    workflow = read_workflow(name)
    put(workflow, info, "OvisU1Loader", model_name=model)
    put(workflow, info, "OvisU1Sampler", seed=seed, steps=steps)
    return workflow


def put(workflow: Workflow, info: ObjectInfo, node_type: str, **values: Any) -> None:
    """Sets widgets of every node of a type, by name; None does not change a widget."""
    for node in nodes_of(workflow, node_type):
        put_in(node, info, **values)


def put_in(node: dict[str, Any], info: ObjectInfo, **values: Any) -> None:
    """Sets widgets of one node, by name; None does not change a widget. Raises ValueError for an unknown name."""
    names = widget_names(info[node["type"]])
    for name, value in values.items():
        place = names.index(name)
        if value is not None:
            node["widgets_values"][place] = value


def widget(workflow: Workflow, info: ObjectInfo, node_type: str, name: str) -> Any:
    """The value of a widget of the one node of a type."""
    (node,) = nodes_of(workflow, node_type)
    return node["widgets_values"][widget_names(info[node_type]).index(name)]


def nodes_of(workflow: Workflow, node_type: str) -> list[dict[str, Any]]:
    """The nodes of a type, in the workflow's order."""
    return [node for node in workflow["nodes"] if node["type"] == node_type]


def run(server: ComfyServer, info: ObjectInfo, workflow: Workflow, doing: str) -> Result:
    """Runs a workflow with a progress bar; its images contain the workflow, as from the page."""
    try:
        prompt = to_api(workflow, info)
    except ValueError as error:
        raise UserError(str(error)) from error
    begun = time.monotonic()
    show(f"{doing} ...")

    def on_progress(value: int, maximum: int) -> None:
        seconds = time.monotonic() - begun
        show(f"{bar(value, maximum)}  {doing}: step {value} of {maximum}, {seconds:.0f} s")

    try:
        result = server.run(prompt, on_progress=on_progress, timeout=None, workflow=workflow)
    except BaseException:
        show(f"{doing}: not finished", last=True)
        raise
    show(f"{bar(1, 1)}  {doing}: done, {result.seconds:.1f} s", last=True)
    return result


def images_of(server: ComfyServer, result: Result, kind: str = "output") -> list[bytes]:
    """The files of the images that a workflow saved; those that it previewed if `kind` is "temp"."""
    entries = [entry for output in result.outputs.values() for entry in output.get("images", [])]
    found = [server.image(entry) for entry in entries if entry.get("type") == kind]
    if not found:
        raise UserError(f"the workflow ended without an image; read ComfyUI's log {server.log}.")
    return found


def text_of(server: ComfyServer, result: Result) -> str:
    """The first text that a workflow shows."""
    texts = [text for output in result.outputs.values() for text in output.get("text", [])]
    if not texts:
        raise UserError(f"the workflow ended without an answer; read ComfyUI's log {server.log}.")
    return str(texts[0]).strip()
