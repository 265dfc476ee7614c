"""Edits: ImgEdit-Bench and GEdit-Bench."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from console import UserError

from .record import Record, Source
from .rows import Row, json_lines, json_object, json_value, need_file, parquet, row_of

LANGUAGE = "en"  # the report's figure is for the English instructions
METHOD = "ovis-u1"  # GEdit-Bench's folder for a model


def imgedit_rows(data: Path) -> Iterator[Row]:
    """The records of `basic_edit.json`, or of the folder's, with their keys."""
    file = need_file(data / "basic_edit.json" if data.is_dir() else data, "basic_edit.json")
    try:
        records = json_value(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    if not isinstance(records, dict):
        raise UserError(f"{file}: this is not a JSON object of records; name ImgEdit-Bench's basic_edit.json")
    for number, (key, value) in enumerate(records.items()):
        where = f"{file}, record {key!r}"
        yield row_of(where, number, file.parent, lambda key=key, value=value: {**json_object(value), "key": key})


def imgedit(row: Row) -> Record:
    """{key, id, prompt} -> an image named by the key.

    `id` is an image's path in the JSON's own folder or in a folder in it, which is how the archive unpacks.
    """
    name = row.name(row.values["key"])
    image = row.text("id")
    (beside,) = row.paths(image)
    try:
        found = next((root / image for root in _roots(row.folder) if (root / image).is_file()), beside)
    except OSError as error:
        raise ValueError(f"its image cannot be looked for ({error.strerror}); change its id") from error
    return Record(name, "edit", row.text("prompt"), (found,), (f"images/{name}.png",))


@cache
def _roots(folder: Path) -> list[Path]:
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]


def gedit_rows(data: Path) -> Iterator[Row]:
    """The English records of the data set's parquet files, or of a JSONL with paths."""
    rows = json_lines(need_file(data, "the JSONL")) if data.suffix == ".jsonl" else parquet(data)
    return (row for row in rows if row.wrong or row.values.get("instruction_language") == LANGUAGE)


def gedit(row: Row) -> Record:
    """{task_type, key, instruction, ...} -> the edited image and its source, by kind of edit and language.

    The scorer compares `KEY.png` with `KEY_SRCIMG.png` beside it.
    """
    kind, key = row.name(row.text("task_type")), row.name(row.text("key"))
    source = _picture(row, "input_image_raw")
    shown = _picture(row, "input_image") if row.values.get("input_image") else source
    name = f"{METHOD}/fullset/{kind}/{LANGUAGE}/{key}"
    beside = {f"{name}_SRCIMG.png": shown}
    return Record(f"{kind}/{key}", "edit", row.text("instruction"), (source,), (f"{name}.png",), beside)


def _picture(row: Row, key: str) -> Source:
    """A picture as the data set holds it ({"bytes": ...}), or its path beside the JSONL."""
    value = row.values.get(key)
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, str):
        return row.paths(value)[0]
    raise ValueError(f"it has no image {key!r}; every record needs one")
