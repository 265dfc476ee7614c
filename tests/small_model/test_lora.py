"""A LoRA of a colour that the small model was not trained on, trained by core's nodes on ten pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import flat_shapes
import numpy as np
import pytest
import torch
from new_colour import PINK, PROMPT, write_pictures
from torch import Tensor

import workspace
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS
from helpers.graphs import Graph, saved_image, text_to_image
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

FOLDER = "pink_shapes"
# In a batch of several, the node computes every picture with every caption.
TRAINING = {
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "steps": 120,
    "learning_rate": 0.006,
    "rank": 8,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 1,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "existing_lora": "[None]",
}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with the small model, and ten pictures with captions among its inputs."""
    base = workspace.make_base(tmp_path_factory.mktemp("lora"), ROOT, comfyui_path())
    write_pictures(base / "input" / FOLDER)
    with ComfyServer(comfyui_path(), base, DEVICE_ARGS) as running:
        yield running


@pytest.fixture(scope="module")
def lora(studio: ComfyServer) -> str:
    """Trains and saves the LoRA; the name under which core's loaders find it."""
    node = studio.object_info()["TrainLoraNode"]
    # Newer versions of ComfyUI have more settings.
    usual = {
        name: rest[0]["default"] for name, (_, *rest) in node["input"]["required"].items() if "default" in str(rest)
    }
    loader = {"class_type": "OvisU1Loader", "inputs": {"model_name": built_in.NAME, "weight_dtype": "default"}}
    graph = Graph({"1": loader})
    model, clip, vae = (graph.out("OvisU1Loader", slot) for slot in range(3))
    data = graph.add("LoadImageTextDataSetFromFolder", folder=FOLDER)
    made = graph.add("MakeTrainingDataset", images=[data, 0], texts=[data, 1], vae=vae, clip=clip)
    trained = graph.add("TrainLoraNode", model=model, latents=[made, 0], positive=[made, 1], **{**usual, **TRAINING})
    graph.add("SaveLoRA", lora=[trained, node["output"].index("LORA_MODEL")], prefix="loras/pink")
    studio.run(graph.prompt, timeout=None)
    (file,) = (studio.base / "output" / "loras").glob("pink*.safetensors")
    loras = studio.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    shutil.move(file, loras / "pink.safetensors")
    return "pink.safetensors"


def prompt_graph(server: ComfyServer, prompt: str, seed: int) -> Graph:
    """Text to image with the small model."""
    graph = text_to_image(server.object_info(), flat_shapes.SIDE, flat_shapes.SIDE, built_in.STEPS, seed)
    return graph.set("OvisU1Loader", model_name=built_in.NAME).set("OvisU1TextEncode", prompt=prompt)


def run(server: ComfyServer, graph: Graph) -> Tensor:
    """The picture that is saved, (3, 128, 128) in 0..1."""
    image = saved_image(server, server.run(graph.prompt), graph).convert("RGB")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def is_pink(image: Tensor) -> bool:
    """Whether the middle of the picture is nearer to pink than to any colour of the training."""
    middle = image[:, 54:74, 54:74].mean((1, 2))
    palette = torch.stack([torch.tensor(PINK) / 255, *(flat_shapes.colour_of(name) for name in flat_shapes.COLOURS)])
    return int((palette - middle).norm(dim=1).argmin()) == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lora_learns_a_colour(studio: ComfyServer, lora: str, seed: int) -> None:
    graph = prompt_graph(studio, PROMPT, seed)
    assert not is_pink(run(studio, graph))
    patched = graph.add("LoraLoaderModelOnly", model=graph.out("OvisU1Loader"), lora_name=lora, strength_model=1.0)
    image = run(studio, graph.set("OvisU1Sampler", model=[patched, 0]))
    assert is_pink(image)
    found = flat_shapes.recognise(image)
    assert found.background == "blue"
    assert [shape.kind for shape in found.shapes] == ["square"]


def test_a_lora_in_a_hook_acts_on_one_of_two_prompts(studio: ComfyServer, lora: str) -> None:
    """Two prompts of the same words, one for each half; only the left one has the hook."""
    graph = prompt_graph(studio, "a small pink square on a blue background", 1)
    prompt, area = graph.out("OvisU1TextEncode"), {"width": 64, "height": 128, "y": 0, "strength": 1.0}
    left = graph.add("ConditioningSetArea", conditioning=prompt, x=0, **area)
    right = graph.add("ConditioningSetArea", conditioning=prompt, x=64, **area)
    hook = graph.add("CreateHookLoraModelOnly", lora_name=lora, strength_model=1.0)
    hooked = graph.add(
        "ConditioningSetProperties", cond_NEW=[left, 0], strength=1.0, set_cond_area="default", hooks=[hook, 0]
    )
    images = []
    for of_left in (left, hooked):
        both = graph.add("ConditioningCombine", conditioning_1=[of_left, 0], conditioning_2=[right, 0])
        images.append(run(studio, graph.set("OvisU1Sampler", positive=[both, 0])))
    without, with_hook = images
    change = (with_hook - without).abs().mean((0, 1))  # of each column; the negative prompt is for both halves
    assert change[80:].mean() < 0.3 * change[:64].mean()
    pink = torch.tensor(PINK).view(3, 1, 1) / 255
    near, far = ((pink - image[:, 48:80, 16:48]).norm(dim=0).mean() for image in (with_hook, without))
    assert near < far - 0.1
