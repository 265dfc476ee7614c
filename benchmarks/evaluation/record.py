"""One record of a benchmark, what is asked of the model for it, and what came of it."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .fingerprint import sha256
from .settings import Settings

SEED_BYTES = 6  # a page's JavaScript holds no larger number exactly


@dataclass(frozen=True)
class Base64:
    """A picture's file as text."""

    text: str


Source = Path | bytes | Base64
"""A picture: its file, or what a file of it would hold."""


@dataclass(frozen=True)
class Record:
    """What one record asks, and where its results go.

    id        its own among all of the benchmark's
    task      one of `settings.REPORT`
    prompt    prompt, instruction or question
    images    what it is about
    files     names under the run's folder for what is made, one for each image
    beside    name -> what is written beside them as it is
    settings  where it differs from the run's
    seed      its own; None: one that follows from the run's and its id
    grid      files holds one name, for all images two by two
    samples   how many images are made
    choices   letters to choose from
    row       what the benchmark says of it, for scorers
    wrong     why nothing can be made of it; it has failed then
    """

    id: str
    task: str
    prompt: str
    images: tuple[Source, ...] = ()
    files: tuple[str, ...] = ()
    beside: Mapping[str, Source] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    grid: bool = False
    samples: int = 1
    choices: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    wrong: str = ""


@dataclass(frozen=True)
class Work:
    """What goes to a worker, which sees no file of the benchmark; pictures are the bytes of files."""

    task: str
    prompt: str
    images: tuple[bytes, ...]
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    grid: bool
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A record with all that it needs read.

    beside  as the record's
    begun   when the reading began, by the monotonic clock
    """

    record: Record
    work: Work
    beside: Mapping[str, bytes]
    begun: float

    def asked(self) -> str:
        """SHA-256 of all that its files and answer follow from, but for the model."""
        work = self.work
        words = [work.task, work.prompt, dict(work.settings), work.seeds, work.grid, work.choices, *self.beside]
        parts = (json.dumps(words, sort_keys=True).encode(), *work.images, *self.beside.values())
        return sha256("".join(sha256(part) for part in parts).encode())


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


def task_of(record: Record, settings: Settings, seed: int) -> Task:
    """Reads a record's pictures and draws its seeds. Raises OSError or ValueError where a picture cannot be read."""
    begun = time.monotonic()
    work = Work(
        record.task,
        record.prompt,
        tuple(read(source) for source in record.images),
        {**settings[record.task], **record.settings},
        seeds(record, seed),
        record.grid,
        record.choices,
    )
    return Task(record, work, {name: read(source) for name, source in record.beside.items()}, begun)


def seeds(record: Record, seed: int) -> tuple[int, ...]:
    """A seed for each image, which follows from the run's seed and the record's id and nothing else."""
    if record.seed is not None:
        return tuple(record.seed + i for i in range(record.samples))
    return tuple(_drawn(f"{seed}/{record.id}/{i}") for i in range(record.samples))


def read(source: Source) -> bytes:
    """A picture's file. Raises OSError, or ValueError for what is not base64."""
    if isinstance(source, Base64):
        return base64.b64decode(source.text)
    return source if isinstance(source, bytes) else source.read_bytes()


def _drawn(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:SEED_BYTES], "big")
