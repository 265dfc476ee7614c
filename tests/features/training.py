"""A LoRA trained by core's nodes."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

from PIL import Image

from helpers.graphs import saved_latent

from .table import HEIGHT, PROMPT, WIDTH, Lab, apart, other, row

STEPS = 60
FOLDER = "ovis_u1_lora"  # as in the workflow that trains a LoRA
WITHOUT_CAPTIONS = "ovis_u1_pictures"  # as in the workflow that captions a folder


@row(
    "training",
    "TrainLoraNode, SaveLoRA, LoraLoader",
    "the loss falls; with the saved file the image moves towards the data",
)
def train(lab: Lab) -> None:
    bench = lab.bench()
    data, _ = bench.node("LoadImageTextDataSetFromFolder", folder=FOLDER)
    made, _ = bench.node("MakeTrainingDataset", images=[data, 0], texts=[data, 1], vae=bench.vae, clip=bench.clip)
    settings = {"batch_size": 1, "grad_accumulation_steps": 1, "steps": STEPS, "learning_rate": 0.005, "rank": 4}
    types = {"training_dtype": "fp32", "lora_dtype": "fp32", "existing_lora": "[None]", "algorithm": "LoRA"}
    given = {"model": bench.model, "latents": [made, 0], "positive": [made, 1]}
    kinds = {"optimizer": "AdamW", "loss_function": "MSE", "seed": 1, "gradient_checkpointing": True}
    outputs = {name: i for i, name in enumerate(lab.info["TrainLoraNode"]["output"])}
    trained, _ = bench.node("TrainLoraNode", **settings, **types, **given, **kinds)
    shown = bench.add("PreviewAny", source=[trained, outputs["LOSS_MAP"]])
    bench.node("SaveLoRA", lora=[trained, outputs["LORA_MODEL"]], prefix="features/trained")
    target = bench.node("LatentFromBatch", samples=[made, 0], batch_index=0, length=1)
    before = bench.ksampler(cfg=1.0)
    saves = [bench.save_latent(link, "features") for link in (target, before)]
    result = bench.execute()
    losses = json.loads("".join(result.outputs[shown]["text"]))["loss"]
    assert len(losses) == STEPS
    third = STEPS // 3
    assert statistics.mean(losses[-third:]) < 0.8 * statistics.mean(losses[:third])

    (file,) = (lab.server.base / "output" / "features").glob("trained*.safetensors")
    loras = lab.server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    shutil.move(file, loras / "trained.safetensors")
    again = lab.bench()
    log = len(lab.server.log_text())
    strengths = {"strength_model": 1.0, "strength_clip": 0.0}
    node, _ = again.node("LoraLoader", model=again.model, clip=again.clip, lora_name="trained.safetensors", **strengths)
    after = again.sampled(again.ksampler(model=[node, 0], cfg=1.0))
    assert "lora key not loaded" not in lab.server.log_text()[log:]
    wanted, untrained = (saved_latent(lab.server, result, save) for save in saves)
    other(after, untrained)
    assert apart(after, wanted) < 0.9 * apart(untrained, wanted)


def write_dataset(inputs: Path) -> None:
    """Two pictures, with and without captions; before the server starts, which lists folders then."""
    for folder in (inputs / FOLDER, inputs / WITHOUT_CAPTIONS):
        folder.mkdir(parents=True)
        for name, color in (("one", (200, 40, 40)), ("two", (180, 60, 40))):
            Image.new("RGB", (WIDTH, HEIGHT), color).save(folder / f"{name}.png")
            if folder.name == FOLDER:
                (folder / f"{name}.txt").write_text(PROMPT, encoding="utf-8")
