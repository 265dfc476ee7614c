"""Text to image: GenEval and DPG-Bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from console import UserError

from .record import Record
from .rows import Row, json_lines, need_file, row_of

SAMPLES = 4  # images a prompt, in both


def geneval_rows(data: Path) -> Iterator[Row]:
    """The lines of `evaluation_metadata.jsonl`, or of the folder's."""
    file = data / "evaluation_metadata.jsonl" if data.is_dir() else data
    return json_lines(need_file(file, "evaluation_metadata.jsonl"))


def geneval(row: Row) -> Record:
    """{prompt, tag, ...} -> 00000/metadata.jsonl and 00000/samples/00000.png to 00003.png.

    The scorer takes every folder whose name is a number, and from it every sample whose name is one.
    """
    row.text("tag")
    folder = f"images/{row.number:05d}"
    return Record(
        f"{row.number:05d}",
        "image",
        row.text("prompt"),
        files=tuple(f"{folder}/samples/{sample:05d}.png" for sample in range(SAMPLES)),
        beside={f"{folder}/metadata.jsonl": json.dumps(row.values).encode()},
        samples=SAMPLES,
    )


def dpg_rows(data: Path) -> Iterator[Row]:
    """The name and prompt of each text file in a folder."""
    folder = data / "prompts" if (data / "prompts").is_dir() else data
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"--data: {folder} holds no .txt files; name the folder of DPG-Bench's prompts")
    for number, file in enumerate(files):
        yield row_of(str(file), number, folder, lambda file=file: _prompt(file))


def _prompt(file: Path) -> dict[str, str]:
    try:
        return {"name": file.stem, "prompt": file.read_text(encoding="utf-8-sig").strip()}
    except OSError as error:
        raise ValueError(f"it cannot be read ({error.strerror}); put a text file in its place") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"this is not text in UTF-8 ({error}); save it as UTF-8") from error


def dpg(row: Row) -> Record:
    """A prompt -> a grid of 2 x 2 images, named as the prompt's file.

    The scorer takes every file of the folder, so it holds nothing else.
    """
    name = row.name(row.values["name"])
    return Record(name, "image", row.text("prompt"), files=(f"images/{name}.png",), grid=True, samples=SAMPLES)
