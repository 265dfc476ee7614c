"""Edits: ImgEdit-Bench and GEdit-Bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workspace import UserError

from .record import Record, Source, json_lines, need_file, need_name, need_text

LANGUAGE = "en"  # the report's figure is for the English instructions
METHOD = "ovis-u1"  # GEdit-Bench's folder for a model


def imgedit(data: Path) -> Iterator[Record]:
    """`basic_edit.json`, with the images beside it -> an image named by the record's key.

    An image is looked for in the JSON's own folder and in each folder in it, which is how the archive unpacks.
    """
    file = need_file(data / "basic_edit.json" if data.is_dir() else data, "basic_edit.json")
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{file}: this is not JSON ({error})") from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise UserError(f"{file}: this is not a JSON object of records; name ImgEdit-Bench's basic_edit.json")
    roots = [file.parent, *sorted(path for path in file.parent.iterdir() if path.is_dir())]
    for key, row in rows.items():
        where = f"{file}, record {key!r}"
        image = need_text(row, "id", where)
        found = next((root / image for root in roots if (root / image).is_file()), file.parent / image)
        name = need_name(key, where)
        yield Record(name, "edit", need_text(row, "prompt", where), (found,), (f"images/{name}.png",))


def gedit(data: Path) -> Iterator[Record]:
    """The data set's parquet files, or a JSONL with paths -> images and sources by edit and language.

    The scorer compares `KEY.png` with `KEY_SRCIMG.png` beside it.
    """
    for where, row in _jsonl_rows(data) if data.suffix == ".jsonl" else _parquet_rows(data):
        if row.get("instruction_language") != LANGUAGE:
            continue
        kind = need_name(need_text(row, "task_type", where), where)
        key = need_name(need_text(row, "key", where), where)
        source = _picture(row, "input_image_raw", where, data)
        shown = _picture(row, "input_image", where, data) if row.get("input_image") else source
        name = f"{METHOD}/fullset/{kind}/{LANGUAGE}/{key}"
        yield Record(
            f"{kind}/{key}",
            "edit",
            need_text(row, "instruction", where),
            (source,),
            (f"{name}.png",),
            {f"{name}_SRCIMG.png": shown},
        )


def _jsonl_rows(data: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return json_lines(need_file(data, "the JSONL"))


def _parquet_rows(data: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    files = sorted(data.rglob("*.parquet")) if data.is_dir() else [data]
    if not files or not all(file.suffix == ".parquet" and file.is_file() for file in files):
        raise UserError(
            f"--data: {data} holds no .parquet files; name the folder of stepfun-ai/GEdit-Bench, or a JSONL"
        )
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise UserError("GEdit-Bench's parquet files need pyarrow: pip install pyarrow") from error
    for file in files:
        number = 0
        try:
            batches = ParquetFile(file).iter_batches(batch_size=16)
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: this is no parquet file ({error})") from error
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, record {number}", row


def _picture(row: dict[str, Any], key: str, where: str, data: Path) -> Source:
    """A picture as the data set holds it ({"bytes": ...}), or its path beside the JSONL."""
    value = row.get(key)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, str) and value:
        return data.parent / value
    raise UserError(f"{where}: it has no image {key!r}; every record needs one")
