"""A record's work -> the graph that ComfyUI runs, in API form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .record import Work

Graph = dict[str, dict[str, Any]]
SAVE, ANSWER, LETTERS = "save", "answer", "OvisU1EvaluateLetters"
MODEL, CLIP, VAE = (["model", slot] for slot in range(3))


def graph(work: Work, model: dict[str, str], images: Sequence[str], seed: int, name: str) -> Graph:
    """The graph for one seed.

    model   inputs of Ovis-U1 Load Model
    images  names among ComfyUI's inputs
    name    of its own for each run: what ComfyUI has in its cache it would not give out again
    """
    made = {"model": _node("OvisU1Loader", **model)}
    pictures: list[Any] = []
    for i, file in enumerate(images):
        made[f"source {i}"] = _node("LoadImage", image=file)
        link: list[Any] = [f"source {i}", 0]
        if i:
            made[f"batch {i}"] = _node("ImageBatch", image1=pictures, image2=link)
            link = [f"batch {i}", 0]
        pictures = link
    made |= TASKS[work.task](work, pictures, seed, name)
    if "decoded" in made:
        made[SAVE] = _node("SaveImage", images=["decoded", 0], filename_prefix=name)
    return made


def _image(work: Work, _: list[Any], seed: int, __: str) -> Graph:
    words, size, sampling = _split(work, ("negative_prompt",), ("width", "height"))
    return {
        "words": _node("OvisU1TextEncode", clip=CLIP, prompt=work.prompt, **words, **size),
        "empty": _node("EmptyLatentImage", **size, batch_size=1),
        "latent": _node(
            "OvisU1Sampler",
            model=MODEL,
            positive=["words", 0],
            negative=["words", 1],
            latent=["empty", 0],
            seed=seed,
            denoise=1.0,
            **sampling,
        ),
        "decoded": _node("OvisU1Decode", samples=["latent", 0], vae=VAE, restore_size=False),
    }


def _edit(work: Work, pictures: list[Any], seed: int, _: str) -> Graph:
    words, _, sampling = _split(work, ("negative_prompt", "megapixels"), ())
    return {
        "words": _node("OvisU1EditEncode", clip=CLIP, vae=VAE, image=pictures, prompt=work.prompt, **words),
        "latent": _node(
            "OvisU1Sampler",
            model=MODEL,
            positive=["words", 0],
            image_only=["words", 1],
            negative=["words", 2],
            latent=["words", 3],
            seed=seed,
            denoise=1.0,
            **sampling,
        ),
        "decoded": _node("OvisU1Decode", samples=["latent", 0], vae=VAE, restore_size=True),
    }


def _masked(work: Work, pictures: list[Any], seed: int, name: str) -> Graph:
    """As `_edit`, inside the mask that is the picture's alpha channel."""
    made = _edit(work, pictures, seed, name)
    made["inside"] = _node("SetLatentNoiseMask", samples=["words", 3], mask=[pictures[0], 1])
    made["latent"]["inputs"]["latent"] = ["inside", 0]
    return made


def _question(work: Work, pictures: list[Any], _: int, name: str) -> Graph:
    about = {"clip": CLIP, "prompt": work.prompt, "image": pictures}
    # Without sampling no seed changes the answer.
    return {ANSWER: _node("OvisU1Understand", **about, sampling=False, seed=int(name[:8], 16), **work.settings)}


def _chat(work: Work, pictures: list[Any], _: int, name: str) -> Graph:
    """A turn for each line of the prompt; the last answer counts."""
    turns, made, before = work.prompt.splitlines(), {}, {"image": pictures}
    for number, line in enumerate(turns, 1):
        turn = ANSWER if number == len(turns) else f"turn {number}"
        about = {"clip": CLIP, "prompt": line, **before, **work.settings}
        made[turn] = _node("OvisU1Understand", **about, sampling=False, seed=int(name[:8], 16))
        before = {"history": [turn, 1]}
    return made


def _judge(work: Work, pictures: list[Any], _: int, __: str) -> Graph:
    question = 'Does this image fit the description "{prompt}"? Answer yes or no.'
    about = {"clip": CLIP, "images": pictures, "question": question, "prompt": work.prompt}
    return {"judge": _node("OvisU1Judge", **about), ANSWER: _node("PreviewAny", source=["judge", 2])}


def _choice(work: Work, pictures: list[Any], _: int, name: str) -> Graph:
    about = {"clip": CLIP, "prompt": work.prompt, "image": pictures}
    return {ANSWER: _node(LETTERS, **about, choices=json.dumps(work.choices), name=name)}


def _split(work: Work, *groups: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings of two nodes, and the rest."""
    first, second = ({key: work.settings[key] for key in group} for group in groups)
    return first, second, {key: value for key, value in work.settings.items() if key not in {*first, *second}}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


TASKS = {
    "image": _image,
    "edit": _edit,
    "masked": _masked,
    "question": _question,
    "chat": _chat,
    "judge": _judge,
    "choice": _choice,
}
