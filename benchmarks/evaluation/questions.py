"""Questions about images, as VLMEvalKit keeps them (TSV) or in a JSONL with paths."""

from __future__ import annotations

import ast
import reprlib
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from console import UserError

from .record import Base64, Record, Source
from .rows import Row, json_lines, need_file, tab_separated

REFERENCE = 64  # characters: an image column this short names another row's image
DIRECT = "Answer with the option's letter from the given choices directly."


def vqa_rows(data: Path) -> Iterator[Row]:
    """Rows with question, image, and options in columns A, B, C ...

    TSV    columns index, question, image (base64, a list of them, or another row's index) or image_path
    JSONL  the same keys; image is a path, or a list of paths, beside the JSONL
    """
    need_file(data, "a .tsv or .jsonl of questions")
    if data.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"--data: {data} is neither .tsv nor .jsonl; name a file of questions")
    if data.suffix == ".jsonl":
        yield from json_lines(data)
        return
    rows = list(tab_separated(data))
    columns = [column for column in rows[0].values if column] if rows else []
    if rows and not ({"index", "question"} <= {*columns} and {"image", "image_path"} & {*columns}):
        raise UserError(f"{data}: its columns are {', '.join(columns)}; it needs index, question and image")
    pictures = {row.values["index"]: row.values.get("image") or "" for row in rows}
    for row in rows:
        image = row.values.get("image") or ""
        if _filled(image):
            row.values["image"] = Base64(pictures.get(image, "") if len(image) <= REFERENCE else image)
        yield row


def vqa(row: Row) -> Record:
    """A question; without options the answer is free text."""
    values = {key: value for key, value in row.values.items() if key != "image"}
    values.setdefault("index", row.number)
    index = values["index"]
    if not isinstance(index, str | int) or not str(index):
        raise ValueError(f"index {reprlib.repr(index)} is no text and no number; every record needs one of its own")
    letters = tuple(letter for letter in string.ascii_uppercase if _filled(values.get(letter)))
    task = "choice" if letters else "question"
    return Record(str(index), task, _prompt(row, letters), _images(row), choices=letters, row=values)


def _prompt(row: Row, letters: tuple[str, ...]) -> str:
    """The question: hint, question, options, and for options what to answer with."""
    values: Mapping[str, Any] = row.values
    lines = [str(values["hint"])] if _filled(values.get("hint")) else []
    lines.append(row.text("question"))
    if letters:
        lines += [*(f"{letter}. {values[letter]}" for letter in letters), DIRECT]
    return "\n".join(lines)


def _images(row: Row) -> tuple[Source, ...]:
    image = row.values.get("image")
    found: tuple[Source, ...]
    if isinstance(image, Base64):
        if len(image.text) <= REFERENCE:
            raise ValueError("its image is that of a row which is not there; put a picture into it")
        found = tuple(Base64(text) for text in _listed(image.text))
    elif _filled(row.values.get("image_path")):
        found = row.paths(_listed(str(row.values["image_path"])))
    else:
        found = row.paths(image)
    if not found:
        raise ValueError("it has no image; every question needs one")
    return found


def _filled(value: Any) -> bool:
    return value is not None and str(value).strip() not in ("", "nan")


def _listed(text: str) -> list[str]:
    """One text, or those of a list as Python writes it."""
    if not text.startswith("["):
        return [text]
    try:
        return [str(item) for item in ast.literal_eval(text)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"its list of images cannot be read ({error}); write it as Python does") from error
