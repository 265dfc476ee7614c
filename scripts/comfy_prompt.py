"""The progress and the result of a prompt, from ComfyUI's messages; for the demo and the tests."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from console import UserError

Event = dict[str, Any]


class PromptRejected(UserError):
    """ComfyUI rejected a prompt; `error` and `node_errors` are from its answer."""

    def __init__(self, error: Any, node_errors: dict[str, Any]) -> None:
        self.error = error
        self.node_errors = node_errors
        super().__init__(_readable(error, node_errors))


class PromptFailed(UserError):
    """A prompt failed while it ran."""

    def __init__(self, node_id: str, node_type: str, message: str, kind: str = "") -> None:
        self.node_id = node_id
        self.node_type = node_type
        self.message = message
        self.kind = kind
        what = f"{kind}: {message}" if kind else message
        super().__init__(f"node {node_id} ({node_type}): {what}")


class PromptInterrupted(PromptFailed):
    """A prompt was interrupted."""


@dataclass
class Result:
    """The result of a prompt."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    executed_nodes: list[str] = field(default_factory=list)
    cached_nodes: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    error: Event | None = None
    interrupted: bool = False
    node_errors: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, event: Event) -> bool:
        """Records an event; returns True for the last one of the prompt."""
        self.events.append(event)
        kind, data = event.get("type"), event.get("data") or {}
        if data.get("prompt_id") != self.prompt_id:
            return False
        if kind == "execution_cached":
            self.cached_nodes = [str(node) for node in data["nodes"]]
        elif kind == "execution_error":
            self.error = data
        elif kind == "execution_interrupted":
            self.interrupted = True
        elif kind == "executing":
            # When this event has no node, the history has the outputs; "execution_success" comes earlier.
            if data["node"] is None:
                return True
            if data["node"] not in self.executed_nodes:
                self.executed_nodes.append(data["node"])
        return False

    def check(self) -> None:
        """Raises `PromptFailed` or `PromptInterrupted` if the prompt did not finish."""
        if self.error is not None:
            kind = str(self.error.get("exception_type", "")).removeprefix("builtins.")
            message = str(self.error.get("exception_message", "")).strip()
            raise PromptFailed(str(self.error.get("node_id")), str(self.error.get("node_type")), message, kind)
        if self.interrupted:
            node = next((e["data"] for e in self.events if e["type"] == "execution_interrupted"), {})
            named = str(node.get("node_id", "?")), str(node.get("node_type", "?"))
            raise PromptInterrupted(*named, "interrupted")


def shown(data: bytes) -> list[Event]:
    """The events in a binary message, which a node shows while it runs.

    A preview is of type 1 (format, image) or 4 (length of the metadata, metadata, image), a text of type 3 (length of
    the node's id, id, text).
    """
    kind, number = struct.unpack_from(">II", data)
    rest = data[8:]
    if kind == 1:
        return [{"type": "preview", "data": {"image": rest}}]
    if kind == 4:
        return [{"type": "preview", "data": {**json.loads(rest[:number]), "image": rest[number:]}}]
    if kind != 3:
        return []
    return [{"type": "progress_text", "data": {"node": rest[:number].decode(), "text": rest[number:].decode()}}]


def steps(event: Event, prompt_id: str, seen: dict[str, tuple[int, int]]) -> list[tuple[int, int]]:
    """The steps (value, maximum) that are new in an event; ComfyUI reports each step in two ways."""
    data = event.get("data") or {}
    if event.get("type") == "progress":
        states = {str(data.get("node")): data}
    elif event.get("type") == "progress_state":
        # Each running node is listed with 0 of 1 before it reports its own steps.
        running = [item for item in data["nodes"].items() if item[1]["state"] == "running"]
        states = {node: state for node, state in running if state["max"] > 1}
    else:
        return []
    if data.get("prompt_id") not in (None, prompt_id):
        return []
    found = []
    for node, state in states.items():
        step = (int(state["value"]), int(state["max"]))
        if seen.get(node) != step:
            seen[node] = step
            found.append(step)
    return found


def _readable(error: Any, node_errors: dict[str, Any]) -> str:
    lines = []
    for node, said in node_errors.items():
        for item in said.get("errors", []):
            lines.append(": ".join([f"node {node} ({said.get('class_type')})", *_words(item)]))
    if not lines and isinstance(error, dict):
        lines = [": ".join(_words(error))]
    return "ComfyUI rejected the prompt: " + ("; ".join(lines) or str(error))


def _words(error: Mapping[str, Any]) -> list[str]:
    return [str(error[key]).rstrip(".") for key in ("message", "details") if error.get(key)]
