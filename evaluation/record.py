"""A record of a benchmark, the settings of the report, and a worker's output."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

_SAMPLING = {"steps": 50, "negative_prompt": "", "sampler_name": "euler", "scheduler": "ovis_u1"}

Settings = Mapping[str, Mapping[str, Any]]
"""The inputs of the nodes, for each task."""

REPORT_SETTINGS: Settings = {
    "image": {"width": 1024, "height": 1024, "txt_cfg": 5.0, **_SAMPLING},
    "edit": {"megapixels": 0.0, "txt_cfg": 6.0, "img_cfg": 1.5, **_SAMPLING},
    "question": {"max_new_tokens": 512, "thinking": False},
    "choice": {},
}

Source = Path | bytes | str
"""A picture: its path, its file's bytes, or these in base64."""


@dataclass(frozen=True)
class Record:
    """The inputs of one record, and the names of its results.

    id           unique in its benchmark
    task         one of `task_graphs.TASKS`
    prompt       prompt, instruction or question
    images       the input pictures
    files        names of the results in the run's folder, one for each image
    extra_files  name -> a further file that is written unchanged
    settings     settings that differ from the run's
    seed         of the first image; None derives one from the run's seed and the id
    samples      how many images are made
    grid         all images go into one file, two by two
    choices      the answers to choose from
    row          the benchmark's data, for scorers
    error        why the record cannot be run; it counts as failed
    """

    id: str
    task: str
    prompt: str
    images: tuple[Source, ...] = ()
    files: tuple[str, ...] = ()
    extra_files: Mapping[str, Source] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    samples: int = 1
    grid: bool = False
    choices: tuple[str, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    def seeds(self, seed: int) -> list[int]:
        """A seed for each image, from the run's seed and the record alone."""
        if self.seed is not None:
            return [self.seed + i for i in range(self.samples)]
        drawn = (hashlib.sha256(f"{seed}/{self.id}/{i}".encode()).digest() for i in range(self.samples))
        return [int.from_bytes(digest[:6], "big") for digest in drawn]  # JavaScript rounds larger numbers

    def load(self, settings: Settings, seed: int) -> LoadedRecord:
        """Reads the pictures. Raises OSError or ValueError if one cannot be read, or the record is wrong."""
        if self.error:
            raise ValueError(self.error)
        begun = time.monotonic()
        images = tuple(map(read, self.images))
        extra = {name: read(source) for name, source in self.extra_files.items()}
        merged, seeds = {**settings[self.task], **self.settings}, self.seeds(seed)
        inputs = json.dumps([self.task, self.prompt, merged, seeds, self.grid, self.choices, *extra], sort_keys=True)
        input_sha256 = sha256("".join(map(sha256, (inputs.encode(), *images, *extra.values()))).encode())
        work = replace(self, images=images, settings=merged, extra_files={}, row={})
        return LoadedRecord(self, work, seeds, extra, input_sha256, begun)


class LoadedRecord(NamedTuple):
    """A record with its pictures, as a worker needs it; a hash of all inputs; the time when it began."""

    record: Record
    work: Record
    seeds: list[int]
    extra_files: dict[str, bytes]
    input_sha256: str
    begun: float


@dataclass(frozen=True)
class Output:
    """A worker's output: bytes of PNG files, an answer, the probability of each choice, or an error."""

    images: tuple[bytes, ...] = ()
    text: str | None = None
    probabilities: tuple[float, ...] = ()
    seconds: float = 0.0
    error: str = ""


def read(source: Source) -> bytes:
    """The bytes of a picture's file. Raises OSError, or ValueError for invalid base64."""
    if isinstance(source, str):
        return base64.b64decode(source)
    return source if isinstance(source, bytes) else source.read_bytes()


def sha256(data: bytes) -> str:
    """The SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
