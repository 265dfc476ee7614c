"""Made-up data in the format of each benchmark; every picture is small."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIDES = (64, 80)
TWINS = ("twice", "again", "edited", "edited again", "asked once", "and again", "chosen", "chosen again")  # of `jobs`


def picture(color: str = "red", size: tuple[int, int] = SIDES) -> bytes:
    """A PNG's bytes."""
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


def write_lines(file: Path, rows: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def geneval(folder: Path) -> Path:
    rows = [
        {"tag": "counting", "include": [{"class": thing, "count": 1}], "prompt": f"a photo of a {thing}"}
        for thing in ("cow", "clock")
    ]
    return write_lines(folder / "evaluation_metadata.jsonl", rows)


def dpg(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("0", "COCOval2014000000012", "partiprompts9"):
        (folder / f"{name}.txt").write_text(f"The prompt of {name}.\n", encoding="utf-8")
    return folder


def imgedit(folder: Path) -> Path:
    """The layout of the archive: images in a folder next to the JSON file."""
    rows = {}
    for key, color in (("1082", "red"), ("673", "blue")):
        file = folder / "images" / "style" / f"{color}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(color))
        rows[key] = {"id": f"style/{color}.png", "prompt": f"Not {color}.", "edit_type": "style"}
    file = folder / "basic_edit.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def gedit(folder: Path) -> Path:
    """Parquet as the `datasets` library writes it, with one record in Chinese."""
    import pyarrow
    import pyarrow.parquet

    rows = [
        {
            "task_type": kind,
            "key": key,
            "instruction": "Make it green.",
            "instruction_language": language,
            "input_image": {"bytes": picture("navy", (32, 40)), "path": None},
            "input_image_raw": {"bytes": picture("navy"), "path": None},
            "Intersection_exist": True,
        }
        for kind, key, language in (("color_alter", "a1", "en"), ("ps_human", "b2", "en"), ("ps_human", "c3", "cn"))
    ]
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")
    return folder


def vqa(folder: Path) -> Path:
    """As MMBench: a question, the same with its options rotated and its image by reference, and one without options."""
    image = base64.b64encode(picture("olive", (300, 200))).decode()
    rows = [
        {
            "index": "7",
            "question": "Which colour?",
            "hint": "Look.",
            "A": "red",
            "B": "olive",
            "answer": "B",
            "image": image,
        },
        {"index": "1000007", "question": "Which colour?", "A": "olive", "B": "red", "answer": "A", "image": "7"},
        {"index": "8", "question": "What is it?", "answer": "paint", "image": f"['{image}', '{image}']"},
    ]
    columns = ["index", "question", "hint", "A", "B", "answer", "category", "image"]
    folder.mkdir(parents=True)
    file = folder / "MMBench_DEV_EN.tsv"
    with file.open("w", encoding="utf-8", newline="") as sink:
        writer = csv.DictWriter(sink, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows({"category": "colours", **row} for row in rows)
    return file


def jobs(folder: Path) -> Path:
    """Every task, and three records that cannot work: a damaged image, a missing one, an unknown task."""
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(picture("teal"))
    (folder / "wide.png").write_bytes(picture("black", (320, 100)))
    (folder / "broken.png").write_bytes(picture()[:60])
    rows: list[dict[str, Any]] = [{"prompt": f"thing {i}", "size": "80x64"} for i in range(8)]
    rows += [
        {"id": "three", "task": "image", "prompt": "a row", "seed": 5, "samples": 3, "size": "64x64"},
        {"id": "twice", "prompt": "the same", "seed": 1, "size": "64x64"},
        {"id": "again", "prompt": "the same", "seed": 1, "size": "64x64"},
        {"id": "edited", "task": "edit", "image": "good.png", "prompt": "Make it red.", "seed": 2},
        {"id": "edited again", "task": "edit", "image": "good.png", "prompt": "Make it red.", "seed": 2},
        {"id": "asked", "task": "question", "image": ["good.png", "wide.png"], "prompt": "What?", "max_new_tokens": 4},
        {"id": "chosen", "task": "choice", "image": "good.png", "prompt": "Is it red?", "choices": ["Yes", "No"]},
        {"id": "chosen again", "task": "choice", "image": "good.png", "prompt": "Is it red?", "choices": ["Yes", "No"]},
        {"id": "asked once", "task": "question", "image": "good.png", "prompt": "What is it?", "seed": 3},
        {"id": "and again", "task": "question", "image": "good.png", "prompt": "What is it?", "seed": 3},
        {"id": "broken", "task": "edit", "image": "broken.png", "prompt": "Make it red."},
        {"id": "missing", "task": "edit", "image": "nowhere.png", "prompt": "Make it red."},
        {"id": "sing", "task": "sing", "prompt": "x"},
    ]
    return write_lines(folder / "jobs.jsonl", rows)
