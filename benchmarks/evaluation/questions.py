"""Questions about images, as VLMEvalKit keeps them (TSV) or in a JSONL with paths."""

from __future__ import annotations

import ast
import base64
import binascii
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workspace import UserError

from .record import Record, Source, json_lines, need_file, need_text, tab_separated

REFERENCE = 64  # characters: an image column this short names another row's image
DIRECT = "Answer with the option's letter from the given choices directly."


def vqa(data: Path) -> Iterator[Record]:
    """Records with question, image, and options in columns A, B, C ...; without options the answer is free text.

    TSV    columns index, question, image (base64, a list of them, or another row's index) or image_path
    JSONL  the same keys; image is a path, or a list of paths, beside the JSONL
    """
    need_file(data, "a .tsv or .jsonl of questions")
    if data.suffix not in (".tsv", ".jsonl"):
        raise UserError(f"--data: {data} is neither .tsv nor .jsonl")
    for where, row, images in _tsv_rows(data) if data.suffix == ".tsv" else _jsonl_rows(data):
        letters = tuple(letter for letter in string.ascii_uppercase if _filled(row.get(letter)))
        yield Record(
            str(row["index"]),
            "choice" if letters else "question",
            prompt(row, letters, where),
            images,
            choices=letters,
            row=row,
        )


def prompt(row: Mapping[str, Any], letters: tuple[str, ...], where: str) -> str:
    """The question: hint, question, options, and for options what to answer with."""
    lines = [str(row["hint"])] if _filled(row.get("hint")) else []
    lines.append(need_text(row, "question", where))
    if letters:
        lines += [*(f"{letter}. {row[letter]}" for letter in letters), DIRECT]
    return "\n".join(lines)


def _filled(value: Any) -> bool:
    return value is not None and str(value).strip() not in ("", "nan")


def _jsonl_rows(data: Path) -> Iterator[tuple[str, dict[str, Any], tuple[Source, ...]]]:
    for number, (where, row) in enumerate(json_lines(data)):
        paths = row.pop("image", None)
        paths = [paths] if isinstance(paths, str) else paths
        if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
            raise UserError(f"{where}: image is no path and no list of paths; every record needs one")
        yield where, {"index": number, **row}, tuple(data.parent / path for path in paths)


def _tsv_rows(data: Path) -> Iterator[tuple[str, dict[str, Any], tuple[Source, ...]]]:
    shared: dict[str, str] = {}
    for row in tab_separated(data):
        if "index" not in row or "question" not in row or not ({"image", "image_path"} & row.keys()):
            raise UserError(f"{data}: its columns are {', '.join(row)}; it needs index, question and image")
        if _is_reference(row.get("image")):
            shared[row["image"]] = ""
    for row in tab_separated(data) if shared else ():
        if row["index"] in shared:
            shared[row["index"]] = row["image"]
    for row in tab_separated(data):
        where = f"{data}, index {row['index']}"
        image = row.pop("image", None)
        if not _filled(image):
            yield where, row, tuple(data.parent / path for path in _listed(row.get("image_path") or "", where))
            continue
        image = shared.get(image, image)
        if not image:
            raise UserError(f"{where}: its image is that of a row which is not there")
        yield where, row, tuple(_decoded(text, where) for text in _listed(image, where))


def _is_reference(image: str | None) -> bool:
    return image is not None and 0 < len(image) <= REFERENCE


def _listed(text: str, where: str) -> list[str]:
    """One text, or those of a list as Python writes it."""
    if not text.startswith("["):
        return [text]
    try:
        return [str(item) for item in ast.literal_eval(text)]
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{where}: its list of images cannot be read ({error})") from error


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{where}: its image is not base64 ({error})") from error
