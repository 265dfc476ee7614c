"""One record of a benchmark, and what is asked of the model for it."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workspace import UserError

Source = Path | bytes
"""A picture: its file, or what a file of it would hold."""

SETTINGS: dict[str, dict[str, Any]] = {
    "image": {
        "width": 1024,
        "height": 1024,
        "steps": 50,
        "txt_cfg": 5.0,
        "negative_prompt": "",
        "sampler_name": "euler",
        "scheduler": "ovis_u1",
    },
    "edit": {
        "megapixels": 0.0,
        "steps": 50,
        "txt_cfg": 6.0,
        "img_cfg": 1.5,
        "negative_prompt": "",
        "sampler_name": "euler",
        "scheduler": "ovis_u1",
    },
    "question": {"max_new_tokens": 512, "thinking": False},
    "choice": {},
}
"""For each task the inputs of its nodes, as the report has them."""

SAFE_NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f]+")
SEED_BYTES = 6  # a page's JavaScript holds no larger number exactly


@dataclass(frozen=True)
class Record:
    """What one record asks, and where its results go.

    id        its own among all of the benchmark's
    task      one of `SETTINGS`
    prompt    prompt, instruction or question
    images    what it is about
    files     names under the run's folder for what is made, one for each image
    beside    name -> what is written beside them as it is
    settings  where it differs from the run's
    seed      its own; None: one that follows from the run's and its id
    sheet     files holds one name, for all images as one sheet
    samples   how many images are made
    choices   letters to choose from
    row       what the benchmark says of it, for scorers
    """

    id: str
    task: str
    prompt: str
    images: tuple[Source, ...] = ()
    files: tuple[str, ...] = ()
    beside: Mapping[str, Source] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    sheet: bool = False
    samples: int = 1
    choices: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What goes to a worker, which sees no file of the benchmark; pictures are the bytes of files."""

    task: str
    prompt: str
    images: tuple[bytes, ...]
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    sheet: bool
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """What came of it.

    images   PNG files' bytes
    text     the answer
    chances  the probability of each choice
    seconds  that ComfyUI took
    error    why there is nothing; empty where there is
    """

    images: tuple[bytes, ...] = ()
    text: str | None = None
    chances: tuple[float, ...] = ()
    seconds: float = 0.0
    error: str = ""


def work_of(record: Record, settings: Mapping[str, Mapping[str, Any]], seed: int) -> Work:
    """A record with its pictures read and its seeds drawn. Raises OSError where a picture's file cannot be read."""
    return Work(
        record.task,
        record.prompt,
        tuple(read(source) for source in record.images),
        {**settings[record.task], **record.settings},
        seeds(record, seed),
        record.sheet,
        record.choices,
    )


def seeds(record: Record, seed: int) -> tuple[int, ...]:
    """A seed for each image, which follows from the run's seed and the record's id and nothing else."""
    if record.seed is not None:
        return tuple(record.seed + i for i in range(record.samples))
    return tuple(_drawn(f"{seed}/{record.id}/{i}") for i in range(record.samples))


def read(source: Source) -> bytes:
    """A picture's file."""
    return source if isinstance(source, bytes) else source.read_bytes()


def _drawn(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:SEED_BYTES], "big")


def need_file(path: Path, what: str) -> Path:
    """The path, where it is a file."""
    if not path.is_file():
        raise UserError(f"--data: {path} {'is a folder' if path.is_dir() else 'is not there'}; name {what}")
    return path


def need_name(name: Any, where: str) -> str:
    """A name that a file can have."""
    text = str(name)
    if not SAFE_NAME.fullmatch(text) or text.strip(". ") != text:
        raise UserError(f"{where}: {text!r} cannot be the name of a file; change it")
    return text


def need_text(row: Mapping[str, Any], key: str, where: str) -> str:
    """A text of a record."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: it has no text {key!r}; every record needs one")
    return value


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where it stands and the object, for each line of a JSONL file."""
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(_decoded(lines, path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{where}: this is not JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{where}: this is not a JSON object")
            yield where, row


def tab_separated(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a TSV file with a heading."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(_decoded(lines, path), delimiter="\t")


def _decoded(lines: Iterator[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: this is not text in UTF-8 ({error})") from error
