"""The graph that ComfyUI runs for each task, in API form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from import_core import import_core
from record import Record

Graph = dict[str, dict[str, Any]]
SAVE, ANSWER, CHOOSE = "save", "answer", "OvisU1EvaluateChoose"
FITS = import_core().text.prompts.FITS
MODEL, CLIP, VAE = (["model", slot] for slot in range(3))


def graph(work: Record, model: dict[str, str], images: Sequence[str], seed: int, name: str) -> Graph:
    """The graph for one seed, with pictures in ComfyUI's input folder; model has the inputs of Ovis-U1 Load Model.

    name is different in each run, because ComfyUI returns no outputs for cached nodes.
    """
    made = {"model": _node("OvisU1Loader", **model)}
    batch: list[Any] = ["source 0", 0]
    for i, file in enumerate(images):
        made[f"source {i}"] = _node("LoadImage", image=file)
        if i:
            made[f"batch {i}"] = _node("ImageBatch", image1=batch, image2=[f"source {i}", 0])
            batch = [f"batch {i}", 0]
    made |= TASKS[work.task](work, batch, seed, name)
    if "decoded" in made:
        made[SAVE] = _node("SaveImage", images=["decoded", 0], filename_prefix=name)
    return made


def _image(work: Record, _: list[Any], seed: int, __: str) -> Graph:
    sampling = dict(work.settings)
    negative, size = sampling.pop("negative_prompt"), {side: sampling.pop(side) for side in ("width", "height")}
    sampling |= {"positive": ["encode", 0], "negative": ["encode", 1], "latent": ["empty", 0]}
    return {
        "encode": _node("OvisU1TextEncode", clip=CLIP, prompt=work.prompt, negative_prompt=negative, **size),
        "empty": _node("EmptyLatentImage", **size, batch_size=1),
        "latent": _node("OvisU1Sampler", model=MODEL, seed=seed, denoise=1.0, **sampling),
        "decoded": _node("OvisU1Decode", samples=["latent", 0], vae=VAE, restore_size=False),
    }


def _edit(work: Record, images: list[Any], seed: int, _: str) -> Graph:
    sampling = dict(work.settings)
    words = {name: sampling.pop(name) for name in ("negative_prompt", "megapixels")}
    sampling |= {n: ["encode", slot] for slot, n in enumerate(("positive", "image_only", "negative", "latent"))}
    return {
        "encode": _node("OvisU1EditEncode", clip=CLIP, vae=VAE, image=images, prompt=work.prompt, **words),
        "latent": _node("OvisU1Sampler", model=MODEL, seed=seed, denoise=1.0, **sampling),
        "decoded": _node("OvisU1Decode", samples=["latent", 0], vae=VAE, restore_size=True),
    }


def _masked(work: Record, images: list[Any], seed: int, name: str) -> Graph:
    """As `_edit`, inside the mask that is the picture's alpha channel."""
    made = _edit(work, images, seed, name)
    made["inside"] = _node("SetLatentNoiseMask", samples=["encode", 3], mask=[images[0], 1])
    made["latent"]["inputs"]["latent"] = ["inside", 0]
    return made


def _question(work: Record, images: list[Any], _: int, name: str) -> Graph:
    return {ANSWER: _understand(work, name, prompt=work.prompt, image=images)}


def _chat(work: Record, images: list[Any], _: int, name: str) -> Graph:
    """Two questions, one per line; the second answer is the result."""
    first, second = work.prompt.splitlines()
    turn = _understand(work, name, prompt=first, image=images)
    return {"first turn": turn, ANSWER: _understand(work, name, prompt=second, history=["first turn", 1])}


def _understand(work: Record, name: str, **inputs: Any) -> dict[str, Any]:
    # Without sampling the seed has no effect.
    return _node("OvisU1Understand", clip=CLIP, sampling=False, seed=int(name[:8], 16), **inputs, **work.settings)


def _judge(work: Record, images: list[Any], _: int, __: str) -> Graph:
    return {ANSWER: _node("OvisU1Judge", clip=CLIP, images=images, question=FITS, prompt=work.prompt)}


def _choice(work: Record, images: list[Any], _: int, name: str) -> Graph:
    choices = json.dumps(work.choices)
    return {ANSWER: _node(CHOOSE, clip=CLIP, prompt=work.prompt, image=images, choices=choices, name=name)}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


TASKS = {"image": _image, "edit": _edit, "question": _question, "choice": _choice}
TASKS |= {"paint": _image, "masked": _masked, "ask": _question, "describe": _question, "chat": _chat, "judge": _judge}
