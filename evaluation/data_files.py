"""The files of a benchmark as rows: JSONL, JSON, TSV, parquet, a folder of texts."""

from __future__ import annotations

import csv
import json
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from console import UserError

FILE_NAME = re.compile(r'[^/\\:*?"<>|\x00-\x1f]{1,120}')

Rows = Iterator[tuple[str, Callable[[], Any]]]
"""The place of each row, for messages, and a function that reads its values; it raises OSError or ValueError."""


class RowError(ArgumentTypeError, ValueError):
    """A wrong value; the message names it and says what to do. argparse shows it for an option with such a value."""


class DataRow(NamedTuple):
    """A row: its number, from 0, its paths' folder, and its values. The methods raise `RowError`."""

    number: int
    folder: Path
    values: dict[str, Any]

    def text(self, key: str) -> str:
        """A text that every record needs."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip():
            raise RowError(f"{key}: expected text, got {value!r}; every record needs one.")
        return value

    def name(self, value: Any) -> str:
        """A value that becomes the name of a file."""
        text = str(value)
        if not FILE_NAME.fullmatch(text) or text.strip(". ") != text:
            raise RowError(f"{text[:40]!r} cannot be the name of a file; change it.")
        return text

    def paths(self, value: Any) -> tuple[Path, ...]:
        """A path or a list of paths."""
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(path and isinstance(path, str) for path in paths):
            raise RowError(f"image: expected a path or a list of paths, got {value!r}; correct it.")
        return tuple(self.folder / path for path in paths)


def json_lines(path: Path) -> Rows:
    """The rows of a JSONL file; blank lines are skipped."""
    with path.open(encoding="utf-8-sig") as lines:
        for place, line in enumerate(lines, 1):
            if line.strip():
                yield f"{path}, line {place}", partial(json.loads, line)


def json_records(path: Path) -> Rows:
    """The rows of a JSON object of objects; the value "key" of each is its key."""
    for key, values in json.loads(path.read_bytes()).items():
        yield f"{path}, record {key!r}", partial(lambda k, v: isinstance(v, dict) and {**v, "key": k}, key, values)


def text_files(folder: Path) -> Rows:
    """The name and text of each .txt file of a folder, as "name" and "prompt"."""
    for file in sorted(folder.glob("*.txt")):
        yield str(file), partial(lambda f: {"name": f.stem, "prompt": f.read_text(encoding="utf-8-sig").strip()}, file)


def tab_separated(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a TSV file with a header."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t")
        yield from ((f"{path}, line {reader.line_num}", values) for values in reader)


def parquet(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of all parquet files in a folder."""
    try:
        from pyarrow.parquet import read_table
    except ModuleNotFoundError as error:
        raise UserError("--data: parquet files need pyarrow; run pip install pyarrow with ComfyUI's Python.") from error
    for file in sorted(folder.rglob("*.parquet")):
        yield from ((f"{file}, row {number}", row) for number, row in enumerate(read_table(file).to_pylist()))
