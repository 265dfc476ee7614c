"""Any batch of images, edits and questions."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .record import Record
from .rows import Row, json_lines, need_file
from .settings import REPORT, need_setting, size

OWN = {"id", "task", "prompt", "image", "seed", "size", "samples", "choices"}
MOST_SAMPLES = 1000


def job_rows(data: Path) -> Iterator[Row]:
    """The lines of a JSONL."""
    return json_lines(need_file(data, "a .jsonl of jobs"))


def job(row: Row) -> Record:
    """{task, prompt, image, seed, size, ...} -> images/ID.png, and an answer among the results.

    task     image, edit, question or choice
    id       names the files; without one the line's number, from 00000
    image    a path beside the JSONL, or a list of paths
    size     "1024x768", for image
    samples  how many images, each of the next seed
    choices  for choice: a list of words
    Every setting of the task can be given too: steps, txt_cfg, img_cfg ...
    """
    values = row.values
    task = values.get("task", "image")
    if not isinstance(task, str) or task not in REPORT:
        raise ValueError(f"task {reprlib.repr(task)} is none of {', '.join(REPORT)}")
    name = row.name(values.get("id", f"{row.number:05d}"))
    unknown = values.keys() - OWN - REPORT[task].keys()
    if unknown:
        known = ", ".join(sorted(OWN | REPORT[task].keys()))
        raise ValueError(f"{', '.join(sorted(unknown))} is nothing that {task} knows; it knows {known}")
    images = row.paths(values.get("image", []))
    if (task == "image") == bool(images) or (task == "edit" and len(images) > 1):
        wanted = {"image": "no image", "edit": "one image"}.get(task, "at least one image")
        raise ValueError(f"{task} needs {wanted} and has {len(images)}")
    samples = _whole(row, "samples", 1, MOST_SAMPLES) or 1
    files = [name] if samples == 1 else [f"{name}_{i:02d}" for i in range(samples)]
    return Record(
        name,
        task,
        row.text("prompt"),
        images,
        tuple(f"images/{file}.png" for file in files) if task in ("image", "edit") else (),
        settings=_settings(row, task),
        seed=_whole(row, "seed", 0, 2**64 - MOST_SAMPLES),
        samples=samples,
        choices=_choices(row, task),
    )


def _whole(row: Row, key: str, least: int, most: int) -> int | None:
    value = row.values.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
        raise ValueError(f"{key} {reprlib.repr(value)} is not a whole number from {least} to {most}")
    return value


def _settings(row: Row, task: str) -> dict[str, Any]:
    if "size" in row.values and task != "image":
        raise ValueError(f"{task} has no size; leave it out")
    own = size(str(row.values["size"])) if "size" in row.values else {}
    return own | {key: need_setting(task, key, row.values[key]) for key in REPORT[task] if key in row.values}


def _choices(row: Row, task: str) -> tuple[str, ...]:
    choices = row.values.get("choices", [])
    words = isinstance(choices, list) and all(isinstance(word, str) for word in choices)
    if not words or (task == "choice") != bool(choices):
        raise ValueError("choices is a list of words, for the task choice and no other")
    return tuple(choices)
