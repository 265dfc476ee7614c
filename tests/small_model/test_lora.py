"""A LoRA of a colour that the small model was not trained on, trained by core's nodes on ten pictures."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import words
import world
from PIL import Image
from torch import Tensor

import workspace
from comfy_server import ComfyServer
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

PINK = (255, 105, 180)
FOLDER = "pink_shapes"
STEPS = 120
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


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def painting(seed: int, prompt: str, lora: str = "") -> dict[str, Any]:
    """The graph of a picture, with a LoRA if one is named."""
    graph = {
        "load": node("OvisU1Loader", model_name=built_in.NAME, weight_dtype="default"),
        "words": node("OvisU1TextEncode", clip=["load", 1], prompt=prompt, width=128, height=128, negative_prompt=""),
        "empty": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "sample": node(
            "OvisU1Sampler",
            model=["lora", 0] if lora else ["load", 0],
            positive=["words", 0],
            negative=["words", 1],
            latent=["empty", 0],
            seed=seed,
            steps=20,
            txt_cfg=5.0,
            sampler_name="euler",
            scheduler="ovis_u1",
            denoise=1.0,
        ),
        "decode": node("OvisU1Decode", samples=["sample", 0], vae=["load", 2], restore_size=False),
        "save": node("SaveImage", images=["decode", 0], filename_prefix="lora/picture"),
    }
    if lora:
        graph["lora"] = node("LoraLoaderModelOnly", model=["load", 0], lora_name=lora, strength_model=1.0)
    return graph


def train(server: ComfyServer) -> str:
    """Trains and saves the LoRA; the name under which core's loaders find it."""
    made = server.object_info()["TrainLoraNode"]["output"]
    graph = {
        "load": node("OvisU1Loader", model_name=built_in.NAME, weight_dtype="default"),
        "data": node("LoadImageTextDataSetFromFolder", folder=FOLDER),
        "made": node("MakeTrainingDataset", images=["data", 0], texts=["data", 1], vae=["load", 2], clip=["load", 1]),
        "train": node(
            "TrainLoraNode",
            model=["load", 0],
            latents=["made", 0],
            positive=["made", 1],
            batch_size=4,
            grad_accumulation_steps=1,
            steps=STEPS,
            learning_rate=0.003,
            rank=8,
            optimizer="AdamW",
            loss_function="MSE",
            seed=1,
            training_dtype="fp32",
            lora_dtype="fp32",
            algorithm="LoRA",
            gradient_checkpointing=False,
            existing_lora="[None]",
        ),
        "save": node("SaveLoRA", lora=["train", made.index("LORA_MODEL")], prefix="loras/pink"),
    }
    server.run(graph, timeout=None)
    (file,) = (server.base / "output" / "loras").glob("pink*.safetensors")
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    shutil.move(file, loras / "pink.safetensors")
    return "pink.safetensors"


def picture(server: ComfyServer, graph: dict[str, Any]) -> Tensor:
    """(3, 128, 128) in 0..1."""
    (entry,) = server.run(graph).outputs["save"]["images"]
    with Image.open(io.BytesIO(server.image(entry))) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255


def is_pink(image: Tensor) -> bool:
    """Whether the middle of the picture is nearer to pink than to any colour of the world."""
    middle = image[:, 54:74, 54:74].mean((1, 2))
    palette = torch.stack([torch.tensor(PINK) / 255, *(world.colour_of(name) for name in world.COLOURS)])
    return int((palette - middle).norm(dim=1).argmin()) == 0


def test_a_lora_learns_a_colour(studio: ComfyServer) -> None:
    before = [picture(studio, painting(seed, PROMPT)) for seed in (1, 2)]
    lora = train(studio)
    after = [picture(studio, painting(seed, PROMPT, lora)) for seed in (1, 2)]
    assert not any(map(is_pink, before))
    assert all(map(is_pink, after))
    for image in after:
        seen = world.look(image)
        assert seen.background == "white"
        assert [shape.kind for shape in seen.shapes] == ["square"]
