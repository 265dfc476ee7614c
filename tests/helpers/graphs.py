"""Prompts for a real server, made from the workflows that users open."""

from __future__ import annotations

import copy
import io
from typing import Any

import safetensors.torch
from PIL import Image
from torch import Tensor

from comfy_prompt import Result
from comfy_server import ComfyServer
from workflow_api import TITLES, read_workflow, to_api

from .paths import ROOT

NAMES = sorted(TITLES)
OLD = ROOT / "tests" / "helpers" / "workflows_0_1_0"  # some of the workflows of version 0.1.0
Prompt = dict[str, dict[str, Any]]


class Graph:
    """A prompt whose nodes are found by class."""

    def __init__(self, prompt: Prompt) -> None:
        self.prompt = prompt

    def copy(self) -> Graph:
        return Graph(copy.deepcopy(self.prompt))

    def find_all(self, class_type: str) -> list[str]:
        """Ids of all nodes of a class, in the graph's order."""
        return [i for i, node in self.prompt.items() if node["class_type"] == class_type]

    def find(self, class_type: str) -> str:
        """Id of the one node of a class."""
        (found,) = self.find_all(class_type)
        return found

    def set(self, class_type: str, **inputs: Any) -> Graph:
        """Changes inputs of the one node of a class."""
        return self.set_node(self.find(class_type), **inputs)

    def set_all(self, class_type: str, **inputs: Any) -> Graph:
        """Changes inputs of every node of a class."""
        for node in self.find_all(class_type):
            self.set_node(node, **inputs)
        return self

    def set_node(self, node: str, **inputs: Any) -> Graph:
        """Changes inputs of one node."""
        self.prompt[node]["inputs"].update(inputs)
        return self

    def add(self, class_type: str, **inputs: Any) -> str:
        """Adds a node; returns its id."""
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


def models(object_info: dict[str, Any]) -> list[str]:
    """The names that Ovis-U1 Load Model offers."""
    spec = object_info["OvisU1Loader"]["input"]["required"]["model_name"]
    return spec[0] if isinstance(spec[0], list) else spec[1]["options"]


def workflows(object_info: dict[str, Any]) -> list[str]:
    """Names of the workflows that this ComfyUI can run: the training node of older versions has one more output."""
    trains = object_info.get("TrainLoraNode", {}).get("output", [None])[0] == "LORA_MODEL"
    return [name for name in NAMES if trains or name != "train_lora"]


def load(name: str, object_info: dict[str, Any]) -> Graph:
    """A workflow on the small model."""
    return Graph(to_api(read_workflow(name), object_info)).set("OvisU1Loader", model_name="tiny")


def text_to_image(
    object_info: dict[str, Any], width: int = 128, height: int = 96, steps: int = 3, seed: int = 7
) -> Graph:
    """The workflow `text_to_image` on the small model."""
    graph = load("text_to_image", object_info).set("OvisU1Sampler", steps=steps, seed=seed)
    sizes = {"width": width, "height": height}
    return graph.set("OvisU1TextEncode", **sizes).set("EmptyLatentImage", **sizes)


def saved_latent(server: ComfyServer, result: Result, node: str) -> Tensor:
    """The latent that a SaveLatent wrote."""
    return safetensors.torch.load(server.image(result.outputs[node]["latents"][0]))["latent_tensor"]


def saved_images(server: ComfyServer, result: Result, node: str) -> list[Image.Image]:
    """The images that a SaveImage wrote."""
    return [Image.open(io.BytesIO(server.image(entry))) for entry in result.outputs[node]["images"]]


def saved_image(server: ComfyServer, result: Result, graph: Graph) -> Image.Image:
    """The image that the one SaveImage wrote."""
    (image,) = saved_images(server, result, graph.find("SaveImage"))
    return image
