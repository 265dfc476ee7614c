"""The cases that the small model is scored on: what goes in, and what is right.

`score.py` runs them through the networks in plain torch, `evaluation/evaluate.py shapes` through ComfyUI. A case
follows from its task and number alone. Scenes and phrasings are held out: training never shows them.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

import flat_shapes
import numpy as np
import phrasings
import torch
from PIL import Image
from torch import Tensor

TASKS = ("paint", "edit", "masked", "ask", "describe", "judge", "chat")
COUNT = 200  # cases of each task
EDITS_IN_A_MASK = ("colour", "shape")
SEPARATE = ("describe", "judge")  # kinds of questions that are tasks of their own

MARGIN = 8  # pixels between a shape's outline and the mask's
REACH = 8  # pixels outside the mask that the VAE may change
UNCHANGED = 0.99  # share of the pixels outside that must keep the colour of the source


@dataclass(frozen=True)
class Case:
    """One case.

    task     one of `TASKS`
    kind     kind of edit or question; empty if the task has only one
    prompt   caption, instruction or question; of a chat both questions, one a line
    sources  scenes of the pictures that go in
    scene    what the picture must show
    answer   what the answer must be; for judge the number of the picture that fits, from 1
    """

    task: str
    kind: str
    prompt: str
    sources: tuple[flat_shapes.Scene, ...] = ()
    scene: flat_shapes.Scene | None = None
    answer: str = ""


def make_case(task: str, number: int, held_out: bool = True) -> Case:
    """The case of a task; `held_out=False` takes the scenes and phrasings of training."""
    rng = Random(f"{task} {number}")
    if task == "paint":
        scene = flat_shapes.make_scene(rng, held_out)
        return Case(task, "", phrasings.caption(scene, rng, held_out), scene=scene)
    if task in ("edit", "masked"):
        kinds = tuple(phrasings.EDITS) if task == "edit" else EDITS_IN_A_MASK
        kind = kinds[number % len(kinds)]
        before = flat_shapes.make_scene(rng, False)
        text, after = phrasings.edit(before, kind, rng, held_out)
        return Case(task, kind, text, (before,), after)
    if task == "judge":
        scene = flat_shapes.make_scene(rng, held_out)
        scenes = [scene, *(phrasings.edit(scene, kind, rng, held_out)[1] for kind in phrasings.EDITS)]
        rng.shuffle(scenes)
        return Case(
            task, "", phrasings.caption(scene, rng, held_out), tuple(scenes), answer=str(scenes.index(scene) + 1)
        )
    scene = flat_shapes.make_scene(rng, held_out, 2 if task == "chat" else 1 + number % 2)
    if task == "describe":
        return Case(task, "", *_asked(scene, "describe", rng, held_out))
    if task == "ask":
        kinds = [kind for kind in phrasings.kinds_of_questions(scene) if kind not in SEPARATE]
        kind = kinds[number // 2 % len(kinds)]
        return Case(task, kind, *_asked(scene, kind, rng, held_out))
    question, first = phrasings.ask(scene, "side", rng, held_out)
    second = rng.choice(phrasings.NEW_FOLLOW_UPS if held_out else phrasings.FOLLOW_UPS)
    answer = next(shape.colour for shape in scene.shapes if shape.kind == first)
    return Case(task, "", f"{question}\n{second}", (scene,), answer=answer)


def first_cases(task: str, count: int, held_out: bool = True) -> list[Case]:
    """The cases of a task with the lowest numbers."""
    return [make_case(task, number, held_out) for number in range(count)]


def all_cases() -> Iterator[tuple[str, Case]]:
    """Every case with its name, round by round one of each task."""
    for number in range(COUNT):
        for task in TASKS:
            yield f"{task}/{number:03d}", make_case(task, number)


def _asked(
    scene: flat_shapes.Scene, kind: str, rng: Random, held_out: bool
) -> tuple[str, tuple[flat_shapes.Scene], None, str]:
    question, answer = phrasings.ask(scene, kind, rng, held_out)
    return question, (scene,), None, answer


def picture_verdict(case: Case, picture: Tensor) -> tuple[bool, str]:
    """Whether a picture (3, 128, 128) in 0..1 is right, and a sentence that says so or what is wrong."""
    assert case.scene is not None
    found = flat_shapes.recognise(picture)
    if not flat_shapes.same(found, case.scene):
        shown = phrasings.describe(found) if found.shapes else f"an empty {found.background} image"
        return False, f"wrong: {shown}, not {phrasings.describe(case.scene)}"
    if case.task != "paint" and not flat_shapes.kept(found, case.scene):
        return False, "wrong: the shape was moved or has another size"
    if case.task == "masked" and (share := _unchanged_outside(case, picture)) < UNCHANGED:
        return False, f"wrong: {1 - share:.1%} of the pixels outside the mask were changed"
    return True, "right"


def answer_verdict(case: Case, answer: str) -> tuple[bool, str]:
    """Whether an answer is right, and a sentence that says so or what is wrong."""
    right = phrasings.described(case.sources[0], answer) if case.task == "describe" else answer.strip() == case.answer
    return right, "right" if right else f"wrong: not {case.answer}"


def source_files(case: Case) -> Iterator[bytes]:
    """The pictures that go in, as PNG files; the mask is the alpha channel, as the page's mask editor leaves it."""
    for scene in case.sources:
        file = io.BytesIO()
        flat_shapes.to_image(flat_shapes.draw([scene])[0], inside_mask(case) if case.task == "masked" else None).save(
            file, "PNG"
        )
        yield file.getvalue()


def from_png(data: bytes) -> Tensor:
    """A picture's file as a tensor (3, 128, 128) in 0..1."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB").resize((flat_shapes.SIDE, flat_shapes.SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def shares(verdicts: Iterable[tuple[Case, bool]]) -> dict[str, dict[str, float]]:
    """Share right and number of cases: by task, as "edit", and by kind if a task has several, as "edit colour"."""
    hits: dict[str, list[bool]] = {}
    for case, right in verdicts:
        for name in {case.task, f"{case.task} {case.kind}".strip()}:
            hits.setdefault(name, []).append(right)
    order = sorted(hits, key=lambda name: (TASKS.index(name.split()[0]), name))
    return {name: {"right": sum(hits[name]) / len(hits[name]), "cases": len(hits[name])} for name in order}


def inside_mask(case: Case) -> Tensor:
    """(128, 128) bool: the mask of a `masked` case, a square around the shape."""
    return _square(case.sources[0].shape, MARGIN)


def outside_mask(case: Case) -> Tensor:
    """(128, 128) bool: the pixels that a `masked` case must leave as they are."""
    return ~_square(case.sources[0].shape, MARGIN + REACH)


def _square(shape: flat_shapes.Shape, margin: float) -> Tensor:
    grid = torch.arange(flat_shapes.SIDE) + 0.5
    reach = shape.radius + margin
    return ((grid - shape.x).abs() <= reach)[None] & ((grid - shape.y).abs() <= reach)[:, None]


def _unchanged_outside(case: Case, picture: Tensor) -> float:
    """Share of the pixels outside the mask whose nearest colour is that of the source."""
    palette = torch.stack([flat_shapes.colour_of(name) for name in flat_shapes.COLOURS])
    before = flat_shapes.draw(case.sources)[0]
    now, then = ((p[None] - palette[:, :, None, None]).square().sum(1).argmin(0) for p in (picture, before))
    return float((now == then)[outside_mask(case)].float().mean())
