"""The files of a benchmark -> rows: what each record says, where it stands, and what is wrong with it.

What is wrong with a row is a ValueError, which says no place: the row knows its own.
"""

from __future__ import annotations

import csv
import json
import re
import reprlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from console import UserError

SAFE_NAME = re.compile(r"[^/\\:*?\"<>|\x00-\x1f\ud800-\udfff]+")
NAME_BYTES = 240  # a file system takes 255, of which our endings need some
LEVELS = 50  # of lists in lists; Python itself gives up on some hundred, now here and now there
DEEP = "this JSON is nested too deep; write it flat"
BATCH = 16  # rows of a parquet file that are read at once


@dataclass(frozen=True)
class Row:
    """A record as its file has it.

    where   its file and place in it, for messages
    number  its place among all, from 0
    folder  where its paths begin
    wrong   why it has no values
    """

    where: str
    number: int
    folder: Path
    values: dict[str, Any] = field(default_factory=dict)
    wrong: str = ""

    def text(self, key: str) -> str:
        """A text that every record needs."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"it has no text {key!r}; every record needs one")
        return value

    def name(self, value: Any) -> str:
        """A name that files can have."""
        text = str(value)
        if not isinstance(value, str | int) or not SAFE_NAME.fullmatch(text) or text.strip(". ") != text:
            raise ValueError(f"{reprlib.repr(text)} cannot be the name of a file; change it")
        if len(text.encode()) > NAME_BYTES:
            raise ValueError(f"{text[:20]!r}... is too long for the name of a file; {NAME_BYTES} bytes are the most")
        return text

    def paths(self, value: Any) -> tuple[Path, ...]:
        """A path or a list of paths, from the data's own folder on."""
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise ValueError("image is no path and no list of paths; name a picture's file")
        for path in paths:
            if "\0" in path or not path:
                raise ValueError(f"{reprlib.repr(path)} cannot be the path of a picture; change it")
        return tuple(self.folder / path for path in paths)


def need_file(path: Path, what: str) -> Path:
    """The path, where it is a file."""
    if not path.is_file():
        raise UserError(f"--data: {path} {'is a folder' if path.is_dir() else 'is not there'}; name {what}")
    return path


def row_of(where: str, number: int, folder: Path, read: Callable[[], dict[str, Any]]) -> Row:
    """A row of what `read` gives, or of the ValueError that it raises."""
    try:
        return Row(where, number, folder, read())
    except ValueError as error:
        return Row(where, number, folder, wrong=str(error))


def json_value(text: bytes) -> Any:
    """What a JSON text says. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(DEEP) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"this is not text in UTF-8 ({error}); save it as UTF-8") from error
    except ValueError as error:
        raise ValueError(f"this is not JSON ({error}); mend it") from error


def json_object(value: Any) -> dict[str, Any]:
    """A JSON value that is an object of whole texts. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("this is not a JSON object; write {...}")
    if _is_deeper(value, LEVELS):
        raise ValueError(DEEP)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ValueError(f"it has half a character ({half!a}), which no file can hold; write it whole") from error
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(part, levels - 1) for part in parts)


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; blank lines count for nothing."""
    with path.open("rb") as lines:
        filled = ((place, line) for place, line in enumerate(lines, 1) if line.strip())
        for number, (place, line) in enumerate(filled):
            yield row_of(f"{path}, line {place}", number, path.parent, lambda line=line: json_object(json_value(line)))


def tab_separated(path: Path) -> Iterator[Row]:
    """The rows of a TSV file with a heading."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t")
        try:
            for number, values in enumerate(reader):
                yield Row(f"{path}, line {reader.line_num}", number, path.parent, values, _wrong_cells(values))
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num}: this is not TSV ({error}); mend it") from error


def _wrong_cells(values: dict[str, Any]) -> str:
    if None in values:
        return "it has more columns than the heading; put quotes around a text with tabs"
    try:
        for text in values.values():
            (text or "").encode()
    except UnicodeEncodeError:
        return "this is not text in UTF-8; save it as UTF-8"
    return ""


def parquet(data: Path) -> Iterator[Row]:
    """The rows of one parquet file, or of all that a folder holds; a damaged file ends at its damage."""
    files = sorted(data.rglob("*.parquet")) if data.is_dir() else [data]
    if not files or not all(file.suffix == ".parquet" and file.is_file() for file in files):
        raise UserError(
            f"--data: {data} holds no .parquet files; name the folder of stepfun-ai/GEdit-Bench, or a JSONL"
        )
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise UserError("GEdit-Bench's parquet files need pyarrow: pip install pyarrow") from error
    number = 0
    for file in files:
        first = number
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=BATCH):
                for values in batch.to_pylist():
                    yield Row(f"{file}, record {number - first + 1}", number, data.parent, values)
                    number += 1
        except (ArrowException, OSError, ValueError) as error:
            where = f"{file}, from record {number - first + 1}"
            yield Row(where, number, data.parent, wrong=f"it is damaged ({' '.join(str(error).split())}); get it again")
            number += 1
