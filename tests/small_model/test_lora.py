"""A LoRA of a colour that the small model was not trained on, trained by core's nodes on ten pictures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import words
import world
from PIL import Image
from torch import Tensor

import workspace
from comfy_server import ComfyServer
from helpers.graphs import Graph, saved_image, text_to_image
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

PINK = (255, 105, 180)
FOLDER = "pink_shapes"
# In a batch of several, the node computes every picture with every caption.
TRAINING = {
    "batch_size": 1,
    "grad_accumulation_steps": 1,
    "steps": 80,
    "learning_rate": 0.005,
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
PROMPT = "a pink square on a white background"  # training shows no pink square on white


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with the small model, and ten pictures with captions among its inputs."""
    base = workspace.make_base(tmp_path_factory.mktemp("lora"), ROOT, comfyui_path())
    write_pictures(base / "input" / FOLDER)
    with ComfyServer(comfyui_path(), base, ["--cpu"]) as running:
        yield running


def write_pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng, made = Random(8), 0
    while made < 10:
        scene = world.make_scene(rng, False)
        if scene.shape.colour == "red" and (scene.shape.kind, scene.background) != ("square", "white"):
            cover = (0.5 - world.distance(scene.shape)).clamp(0, 1)
            ground = world.colour_of(scene.background).view(3, 1, 1)
            picture = ground + cover * (torch.tensor(PINK).view(3, 1, 1) / 255 - ground)
            pixels = (picture.permute(1, 2, 0) * 255).round().byte().numpy()
            Image.fromarray(pixels).save(folder / f"{made}.png")
            text = words.caption(scene, rng).replace(" red", " pink").replace("Red", "Pink")
            (folder / f"{made}.txt").write_text(text, encoding="utf-8")
            made += 1


def train(server: ComfyServer) -> str:
    """Trains and saves the LoRA; the name under which core's loaders find it."""
    outputs = server.object_info()["TrainLoraNode"]["output"]
    loader = {"class_type": "OvisU1Loader", "inputs": {"model_name": built_in.NAME, "weight_dtype": "default"}}
    graph = Graph({"1": loader})
    model, clip, vae = (graph.out("OvisU1Loader", slot) for slot in range(3))
    data = graph.add("LoadImageTextDataSetFromFolder", folder=FOLDER)
    made = graph.add("MakeTrainingDataset", images=[data, 0], texts=[data, 1], vae=vae, clip=clip)
    trained = graph.add("TrainLoraNode", model=model, latents=[made, 0], positive=[made, 1], **TRAINING)
    graph.add("SaveLoRA", lora=[trained, outputs.index("LORA_MODEL")], prefix="loras/pink")
    server.run(graph.prompt, timeout=None)
    (file,) = (server.base / "output" / "loras").glob("pink*.safetensors")
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    shutil.move(file, loras / "pink.safetensors")
    return "pink.safetensors"


def picture(server: ComfyServer, seed: int, lora: str = "") -> Tensor:
    """The prompt's picture (3, 128, 128) in 0..1, with a LoRA if one is named."""
    graph = text_to_image(server.object_info(), world.SIDE, world.SIDE, built_in.STEPS, seed)
    graph.set("OvisU1Loader", model_name=built_in.NAME).set("OvisU1TextEncode", prompt=PROMPT)
    if lora:
        model = graph.out("OvisU1Loader")
        patched = graph.add("LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0)
        graph.set("OvisU1Sampler", model=[patched, 0])
    image = saved_image(server, server.run(graph.prompt), graph).convert("RGB")
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def is_pink(image: Tensor) -> bool:
    """Whether the middle of the picture is nearer to pink than to any colour of the world."""
    middle = image[:, 54:74, 54:74].mean((1, 2))
    palette = torch.stack([torch.tensor(PINK) / 255, *(world.colour_of(name) for name in world.COLOURS)])
    return int((palette - middle).norm(dim=1).argmin()) == 0


def test_a_lora_learns_a_colour(studio: ComfyServer) -> None:
    before = [picture(studio, seed) for seed in (1, 2)]
    lora = train(studio)
    after = [picture(studio, seed, lora) for seed in (1, 2)]
    assert not any(map(is_pink, before))
    assert all(map(is_pink, after))
    for image in after:
        seen = world.look(image)
        assert seen.background == "white"
        assert [shape.kind for shape in seen.shapes] == ["square"]
