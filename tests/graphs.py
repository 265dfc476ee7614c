"""Prompts for a real server, made from the workflows that users open."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from workflow_api import to_api

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
Prompt = dict[str, dict[str, Any]]


class Graph:
    """A prompt whose nodes are found by class."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    def copy(self) -> Graph:
        return Graph(copy.deepcopy(self.prompt))

    def find(self, class_type: str) -> str:
        """Id of the one node of a class."""
        (found,) = (i for i, node in self.prompt.items() if node["class_type"] == class_type)
        return found

    def set(self, class_type: str, **inputs: Any) -> Graph:
        """Changes inputs of the one node of a class."""
        self.prompt[self.find(class_type)]["inputs"].update(inputs)
        return self

    def add(self, class_type: str, **inputs: Any) -> str:
        """Adds a node; its id."""
        new = str(1 + max(map(int, self.prompt)))
        self.prompt[new] = {"class_type": class_type, "inputs": inputs}
        return new

    def out(self, class_type: str, slot: int = 0) -> list[Any]:
        """A link from the one node of a class."""
        return [self.find(class_type), slot]

    def remove(self, *class_types: str) -> Graph:
        for class_type in class_types:
            del self.prompt[self.find(class_type)]
        return self

    def save_latent(self, link: list[Any], name: str) -> str:
        return self.add("SaveLatent", samples=link, filename_prefix=f"tests/{name}")


def text_to_image(
    object_info: dict[str, Any], width: int = 128, height: int = 96, steps: int = 3, seed: int = 7
) -> Graph:
    """`workflows/text_to_image.json` on the small model."""
    workflow = json.loads((WORKFLOWS / "text_to_image.json").read_text(encoding="utf-8"))
    graph = Graph(to_api(workflow, object_info))
    graph.set("OvisU1Loader", model_name="tiny")
    graph.set("OvisU1Sampler", steps=steps, seed=seed)
    sizes = {"width": width, "height": height}
    return graph.set("OvisU1TextEncode", **sizes).set("EmptyLatentImage", **sizes)
