"""Any batch of images, edits and questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workspace import UserError

from .record import SETTINGS, Record, json_lines, need_file, need_name, need_text

SIZE = re.compile(r"(\d+)\s*x\s*(\d+)")
OWN = {"id", "task", "prompt", "image", "seed", "size", "samples", "choices"}
MOST_SAMPLES = 1000


def jobs(data: Path) -> Iterator[Record]:
    """A JSONL of {task, prompt, image, seed, size, ...} -> images/ID.png, and answers among the results.

    task     image, edit, question or choice
    id       names the files; without one the line's number, from 00000
    image    a path beside the JSONL, or a list of paths
    size     "1024x768", for image
    samples  how many images, each of the next seed
    choices  for choice: a list of words
    Every setting of the task can be given too: steps, txt_cfg, img_cfg ...
    """
    for number, (where, row) in enumerate(json_lines(need_file(data, "a .jsonl of jobs"))):
        task = row.get("task", "image")
        if task not in SETTINGS:
            raise UserError(f"{where}: task {task!r} is none of {', '.join(SETTINGS)}")
        name = need_name(row.get("id", f"{number:05d}"), where)
        unknown = row.keys() - OWN - SETTINGS[task].keys()
        if unknown:
            known = ", ".join(sorted(OWN | SETTINGS[task].keys()))
            raise UserError(f"{where}: {', '.join(sorted(unknown))} is nothing that {task} knows; it knows {known}")
        images = row.get("image", [])
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not all(isinstance(path, str) for path in images):
            raise UserError(f"{where}: image is no path and no list of paths")
        if (task == "image") == bool(images) or (task == "edit" and len(images) > 1):
            wanted = {"image": "no image", "edit": "one image"}.get(task, "at least one image")
            raise UserError(f"{where}: {task} needs {wanted} and has {len(images)}")
        samples = _whole(row, "samples", 1, MOST_SAMPLES, where) or 1
        files = [name] if samples == 1 else [f"{name}_{i:02d}" for i in range(samples)]
        choices = row.get("choices", [])
        if (task == "choice") != bool(choices) or not all(isinstance(word, str) for word in choices):
            raise UserError(f"{where}: choices is a list of words, for the task choice and no other")
        yield Record(
            name,
            task,
            need_text(row, "prompt", where),
            tuple(data.parent / path for path in images),
            tuple(f"images/{file}.png" for file in files) if task in ("image", "edit") else (),
            settings={**_size(row, where), **{key: row[key] for key in SETTINGS[task] if key in row}},
            seed=_whole(row, "seed", 0, 2**64 - MOST_SAMPLES, where),
            samples=samples,
            choices=tuple(choices),
        )


def _whole(row: dict[str, Any], key: str, least: int, most: int, where: str) -> int | None:
    value = row.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
        raise UserError(f"{where}: {key} {value!r} is not a whole number from {least} to {most}")
    return value


def _size(row: dict[str, Any], where: str) -> dict[str, int]:
    if "size" not in row:
        return {}
    try:
        return size(str(row["size"]))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def size(text: str) -> dict[str, int]:
    """ "1024x768" -> width and height. Raises ValueError."""
    found = SIZE.fullmatch(text)
    if not found or any(int(side) % 16 or not int(side) for side in found.groups()):
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT in multiples of 16 pixels, such as 1024x768")
    return {"width": int(found[1]), "height": int(found[2])}
