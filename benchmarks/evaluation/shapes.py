"""The small model's own benchmark: cases from seeds, scored by fitting templates, so that no other model is needed.

The cases are those of `small_model/score.py`, and their shapes, colours, grounds and phrasings are held out: training
never met them. Here they run through ComfyUI's graph.
"""

from __future__ import annotations

import io
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import workspace

from .record import Record
from .rows import Row
from .settings import REPORT

# Behind everything else: its modules have plain names.
sys.path.append(str(workspace.ROOT / "small_model"))

import words
import world

CASES = 200  # of each task
TASKS = {
    "paint": "text to image",
    "edit": "edit",
    "masked": "edit inside a mask",
    "ask": "question",
    "describe": "description",
    "judge": "best of four pictures",
    "chat": "second question of a chat",
}
"""In the order in which each round of cases comes."""

KINDS_OF_EDITS = ("colour", "shape", "background")
IN_A_MASK = ("colour", "shape")
NOT_ASKED = ("describe", "judge")  # have rows of their own
SETTINGS: dict[str, dict[str, Any]] = {
    "image": {**REPORT["image"], "width": world.SIDE, "height": world.SIDE, "steps": 20},
    "edit": {**REPORT["edit"], "steps": 20},
    "masked": {**REPORT["edit"], "steps": 20},
    "question": {**REPORT["question"], "max_new_tokens": 24},
    "chat": {**REPORT["question"], "max_new_tokens": 24},
    "judge": {},
}

MARGIN = 8  # pixels between a shape's outline and the mask's
REACH = 8  # pixels outside the mask that the VAE may change
KEPT = 0.99  # share of the pixels outside that must have the source's colour


def shapes_rows(_: Path | None) -> Iterator[Row]:
    """Round by round one case of each task."""
    makers = (_paint(), _edit(), _masked(), _words(), _judge())
    for number in range(CASES):
        paint, edit, masked, (ask, describe, chat), judge = (next(maker) for maker in makers)
        for task, record in zip(TASKS, (paint, edit, masked, ask, describe, judge, chat), strict=True):
            name = f"{task}/{number:03d}"
            files = (f"images/{name}.png",) if record.task in ("image", "edit", "masked") else ()
            made = replace(record, id=name, files=files, row={**record.row, "task": task})
            yield Row(name, number, Path(), {"record": made})


def shapes(row: Row) -> Record:
    """A case. The scorer finds in its `row`: task, kind, and what is expected (`scene` or `answer`)."""
    return row.values["record"]


def _paint() -> Iterator[Record]:
    rng = random.Random(101)
    while True:
        scenes = [world.make_scene(rng, True) for _ in range(CASES)]
        for scene in scenes:
            yield Record("", "image", words.caption(scene, rng, True), row={"kind": "", "scene": scene})


def _edit() -> Iterator[Record]:
    rng = random.Random(102)
    for i in range(sys.maxsize):
        kind = KINDS_OF_EDITS[i % len(KINDS_OF_EDITS)]
        before = world.make_scene(rng, False)
        text, after = words.edit(before, kind, rng, True)
        yield Record("", "edit", text, (drawn(before),), row={"kind": kind, "scene": after})


def _masked() -> Iterator[Record]:
    """The mask is a square around the shape, in the picture's alpha channel as the page's mask editor leaves it."""
    rng = random.Random(105)
    for i in range(sys.maxsize):
        kind = IN_A_MASK[i % len(IN_A_MASK)]
        before = world.make_scene(rng, False)
        text, after = words.edit(before, kind, rng, True)
        inside = _square(before.shape, MARGIN)
        row = {"kind": kind, "scene": after, "before": before, "outside": ~_square(before.shape, MARGIN + REACH)}
        yield Record("", "masked", text, (drawn(before, inside),), row=row)


def _words() -> Iterator[tuple[Record, Record, Record]]:
    """A question, a description and a chat; scenes of one and of two shapes take turns."""
    rng = random.Random(103)
    chats: list[Record] = []
    asked: list[tuple[Record, Record]] = []
    for i in range(2 * CASES):
        scene = world.make_scene(rng, True, 1 + i % 2)
        picture = (drawn(scene),)
        asked_of = {kind: words.ask(scene, kind, rng, True) for kind in words.kinds_of_questions(scene)}
        kinds = [kind for kind in asked_of if kind not in NOT_ASKED]
        kind = kinds[i // 2 % len(kinds)]
        question, answer = asked_of[kind]
        ask = Record("", "question", question, picture, row={"kind": kind, "answer": answer})
        row = {"kind": "", "answer": asked_of["describe"][1], "scene": scene}
        asked.append((ask, Record("", "question", asked_of["describe"][0], picture, row=row)))
        if len(scene.shapes) == 2:
            question, first = words.ask(scene, "side", rng, True)
            again = rng.choice(words.NEW_FOLLOW_UPS)
            answer = next(shape.colour for shape in scene.shapes if shape.kind == first)
            chats.append(Record("", "chat", f"{question}\n{again}", picture, row={"kind": "", "answer": answer}))
    for (ask, describe), chat in zip(asked[:CASES], chats, strict=True):
        yield ask, describe, chat


def _judge() -> Iterator[Record]:
    rng = random.Random(104)
    while True:
        scene = world.make_scene(rng, True)
        order = [scene, *(words.edit(scene, kind, rng, True)[1] for kind in words.EDITS)]
        rng.shuffle(order)
        row = {"kind": "", "answer": f"image {order.index(scene) + 1}"}
        yield Record("", "judge", words.caption(scene, rng, True), tuple(map(drawn, order)), row=row)


def drawn(scene: world.Scene, mask: Tensor | None = None) -> bytes:
    """A scene as a PNG file's bytes; what lies inside a mask (128, 128) is transparent."""
    pixels = (world.draw([scene])[0].permute(1, 2, 0) * 255).round().byte()
    if mask is not None:
        pixels = torch.cat((pixels, torch.where(mask, 0, 255).byte()[..., None]), 2)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def _square(shape: world.Shape, margin: float) -> Tensor:
    """(128, 128) bool: what lies within a square around a shape."""
    grid = torch.arange(world.SIDE) + 0.5
    reach = shape.radius + margin
    return ((grid - shape.x).abs() <= reach)[None] & ((grid - shape.y).abs() <= reach)[:, None]


# ---- scoring


def verdicts(
    folder: Path, records: Iterable[Record], results: Mapping[str, Mapping[str, Any]]
) -> dict[str, tuple[bool, str]]:
    """For each case that has a result: whether it is right, and a sentence about it. A failed case is wrong."""
    found = {}
    for record in records:
        result = results.get(record.id)
        if result is None:
            continue
        if "error" in result:
            found[record.id] = False, "failed"
        elif record.files:
            found[record.id] = _seen(_read(folder / record.files[0]), record.row)
        else:
            found[record.id] = _said(result["answer"], record.row)
    return found


def _seen(picture: Tensor, row: Mapping[str, Any]) -> tuple[bool, str]:
    seen, meant = world.look(picture), row["scene"]
    if not world.same(seen, meant):
        return False, f"wrong: {_described(seen)}, not {_described(meant)}"
    if row["task"] != "paint" and not world.kept(seen, meant):
        return False, "wrong: the shape was moved or has another size"
    if row["task"] == "masked" and (share := _kept_outside(picture, row)) < KEPT:
        return False, f"wrong: {1 - share:.1%} of the pixels outside the mask were changed"
    return True, "right"


def _kept_outside(picture: Tensor, row: Mapping[str, Any]) -> float:
    """Share of the pixels outside the mask that are nearest to the colour that they had."""
    palette = torch.stack([world.colour_of(name) for name in world.COLOURS])
    before = world.draw([row["before"]])[0]
    now, then = ((p[None] - palette[:, :, None, None]).square().sum(1).argmin(0) for p in (picture, before))
    return float((now == then)[row["outside"]].float().mean())


def _said(answer: str, row: Mapping[str, Any]) -> tuple[bool, str]:
    answer = answer.strip()
    if row["task"] == "describe":
        right = words.described(row["scene"], answer)
    elif row["task"] == "judge":
        right = answer.splitlines()[0].removeprefix("1. ").split(":")[0] == row["answer"]
    else:
        right = answer == row["answer"]
    return right, "right" if right else f"wrong: not {row['answer']}"


def _described(scene: world.Scene) -> str:
    return words.describe(scene) if scene.shapes else f"an empty {scene.background} picture"


def _read(file: Path) -> Tensor:
    """A picture's file -> (3, 128, 128) in 0..1."""
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    if image.size != (world.SIDE, world.SIDE):
        image = image.resize((world.SIDE, world.SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def scores(records: Iterable[Record], judged: Mapping[str, tuple[bool, str]]) -> dict[str, Any]:
    """Share right and number of cases by task, and by kind where a task has several."""
    tasks: dict[str, list[bool]] = defaultdict(list)
    kinds: dict[str, list[bool]] = defaultdict(list)
    for record in records:
        if record.id in judged:
            right, _ = judged[record.id]
            tasks[record.row["task"]].append(right)
            if record.row["kind"]:
                kinds[f"{record.row['task']} {record.row['kind']}"].append(right)

    def shares(groups: Mapping[str, list[bool]]) -> dict[str, Any]:
        return {name: {"right": sum(hits) / len(hits), "cases": len(hits)} for name, hits in groups.items()}

    return {"by_task": shares(tasks), "by_kind": shares(kinds)}


def table(scored: Mapping[str, Any], show: Callable[[str], object] = print) -> None:
    """Shows the shares."""
    for task, title in TASKS.items():
        if task in scored["by_task"]:
            show(f"{title:<28}{scored['by_task'][task]['right']:>7.1%} of {scored['by_task'][task]['cases']}")
            for name, share in scored["by_kind"].items():
                if name.split()[0] == task:
                    show(f"  {name.split()[1]:<26}{share['right']:>7.1%} of {share['cases']}")
