"""Text to image: GenEval and DPG-Bench."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from workspace import UserError

from .record import Record, json_lines, need_file, need_name, need_text

SAMPLES = 4  # images a prompt, in both


def geneval(data: Path) -> Iterator[Record]:
    """`evaluation_metadata.jsonl` -> 00000/metadata.jsonl and 00000/samples/00000.png to 00003.png.

    The scorer takes every folder whose name is a number, and from it every sample whose name is one.
    """
    file = need_file(data / "evaluation_metadata.jsonl" if data.is_dir() else data, "evaluation_metadata.jsonl")
    for index, (where, row) in enumerate(json_lines(file)):
        prompt = need_text(row, "prompt", where)
        need_text(row, "tag", where)
        folder = f"images/{index:05d}"
        yield Record(
            f"{index:05d}",
            "image",
            prompt,
            files=tuple(f"{folder}/samples/{sample:05d}.png" for sample in range(SAMPLES)),
            beside={f"{folder}/metadata.jsonl": json.dumps(row).encode()},
            samples=SAMPLES,
        )


def dpg(data: Path) -> Iterator[Record]:
    """A folder with a text file for each prompt -> a sheet of 2 x 2 images, named as the prompt's file.

    The scorer takes every file of the folder, so it holds nothing else.
    """
    folder = data / "prompts" if (data / "prompts").is_dir() else data
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise UserError(f"--data: {folder} holds no .txt files; name the folder of DPG-Bench's prompts")
    for file in files:
        prompt = file.read_text(encoding="utf-8").strip()
        name = need_name(file.stem, str(file))
        need_text({"prompt": prompt}, "prompt", str(file))
        yield Record(name, "image", prompt, files=(f"images/{name}.png",), sheet=True, samples=SAMPLES)
