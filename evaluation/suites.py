"""The benchmarks by name: how their data becomes records. If a row is wrong, only its record fails."""

from __future__ import annotations

import ast
import json
import re
import string
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import workspace
from console import UserError
from data_files import DataRow, RowError, Rows, json_lines, json_records, parquet, tab_separated, text_files
from record import REPORT_SETTINGS, Record, Settings, Source

sys.path.append(str(workspace.ROOT / "small_model"))  # for its module `cases`

SAMPLES = 4  # images per prompt in GenEval and DPG-Bench
REFERENCE = 64  # characters: an image column this short names another row's image
DIRECT = "Answer with the option's letter from the given choices directly."
JOB_KEYS = {"id", "task", "prompt", "seed", "samples"}
KEYS_OF_TASKS = {"image": {"size"}, "edit": {"image"}, "question": {"image"}, "choice": {"image", "choices"}}


class Suite(NamedTuple):
    """A benchmark: functions that read its data's rows and make a record of a row, and its settings for each task."""

    rows: Callable[[Path], Rows]
    record: Callable[[DataRow], Record]
    settings: Settings

    def records(self, data: Path | None) -> list[Record]:
        """All records, wrong ones too. Raises UserError if the data as a whole cannot be used."""
        folder = data.parent if data and data.is_file() else data
        try:
            records = [self._record(i, folder, *row) for i, row in enumerate(self.rows(data))]
        except (AttributeError, LookupError, OSError, ValueError) as error:
            raise UserError(
                f"--data: {data} cannot be read ({' '.join(str(error).split())}); correct the path or the file."
            ) from error
        if not records:
            raise UserError(f"--data: {data} has no records; choose another file or folder.")
        if all(record.error for record in records):
            raise UserError(f"--data: {records[0].id}: {records[0].error}")
        names: dict[str, str] = {}  # ids and files, in lower case for systems that ignore case -> the record
        for record in records:
            for name in (f"id {record.id}", *record.files, *record.extra_files):
                if other := names.get(name.casefold()):
                    raise UserError(f"--data: records {other!r} and {record.id!r} have the same name; rename one.")
                names[name.casefold()] = record.id
        return records

    def _record(self, number: int, folder: Path, where: str, read: Callable[[], Any]) -> Record:
        try:
            values = read()
            if not isinstance(values, dict):
                raise RowError(f"expected an object, {{...}}, got {type(values).__name__}; correct it.")
            return self.record(DataRow(number, folder, values))
        except RowError as error:
            message = str(error)
        except (AttributeError, LookupError, OSError, SyntaxError, TypeError, ValueError) as error:
            message = f"it cannot be read ({' '.join(str(error).split())}); correct it."
        # Named by its place, because its id may be wrong.
        return Record(where, next(iter(self.settings)), "", error=message)


def geneval(row: DataRow) -> Record:
    """{prompt, tag, ...} -> 00000/metadata.jsonl and 00000/samples/00000.png to 00003.png."""
    number, metadata = f"{row.number:05d}", json.dumps(row.values).encode()
    files = tuple(f"images/{number}/samples/{sample:05d}.png" for sample in range(SAMPLES))
    extra = {f"images/{number}/metadata.jsonl": metadata}
    return Record(number, "image", row.text("prompt"), files=files, extra_files=extra, samples=SAMPLES)


def dpg(row: DataRow) -> Record:
    """A prompt -> a grid of 2 x 2 images, named as the prompt's file."""
    name = row.name(row.values["name"])
    return Record(name, "image", row.text("prompt"), files=(f"images/{name}.png",), grid=True, samples=SAMPLES)


def imgedit(row: DataRow) -> Record:
    """{key, id, prompt} -> an image named by the key; `id` is a path in the JSON's folder or in a folder in it."""
    name, image = row.name(row.values["key"]), row.text("id")
    places = [folder / image for folder in (row.folder, *sorted(row.folder.iterdir()))]
    found = next((place for place in places if place.is_file()), places[0])
    return Record(name, "edit", row.text("prompt"), (found,), (f"images/{name}.png",))


def gedit_rows(data: Path) -> Rows:
    """The English records of the data set's parquet files."""
    return ((where, partial(dict, row)) for where, row in parquet(data) if row["instruction_language"] == "en")


def gedit(row: DataRow) -> Record:
    """{task_type, key, instruction, ...} -> KEY.png, and its source as KEY_SRCIMG.png."""
    kind, key = row.name(row.text("task_type")), row.name(row.text("key"))
    source = row.values["input_image_raw"]["bytes"]
    shown = (row.values.get("input_image") or {}).get("bytes") or source
    name = f"ovis-u1/fullset/{kind}/en/{key}"
    extra = {f"{name}_SRCIMG.png": shown}
    return Record(f"{kind}/{key}", "edit", row.text("instruction"), (source,), (f"{name}.png",), extra)


def vqa_rows(data: Path) -> Rows:
    """The rows of a TSV of VLMEvalKit; image is base64, a list of that, or the index of the row whose image it is."""
    rows = list(tab_separated(data))
    images = {values.get("index"): values.get("image") for _, values in rows}
    for where, values in rows:
        image = values.get("image") or ""
        values["image"] = images.get(image) if len(image) <= REFERENCE else image
        yield where, partial(dict, values)


def vqa(row: DataRow) -> Record:
    """A question; without options the answer is free text."""
    values = {key: value for key, value in row.values.items() if key != "image"}
    if None in values:
        raise RowError("the row has more columns than the header; put quotes around a text with tabs.")
    letters = tuple(letter for letter in string.ascii_uppercase if _filled(values.get(letter)))
    lines = [values["hint"]] if _filled(values.get("hint")) else []
    lines.append(row.text("question"))
    if letters:
        lines += [*(f"{letter}. {values[letter]}" for letter in letters), DIRECT]
    image, path = row.values["image"], values.get("image_path")
    if not image and not _filled(path):
        raise RowError("image: expected an image or the index of a row with one, got neither; add the image.")
    images: tuple[Source, ...] = _listed(image) if image else row.paths([*_listed(path)])
    task = "choice" if letters else "question"
    return Record(row.text("index"), task, "\n".join(lines), images, choices=letters, row=values)


def _filled(value: str | None) -> bool:
    return value is not None and value.strip() not in ("", "nan")


def _listed(text: str) -> tuple[str, ...]:
    """One text, or the texts of a list in Python's notation."""
    return tuple(ast.literal_eval(text)) if text.startswith("[") else (text,)


def job(row: DataRow) -> Record:
    """A job, as in docs/evaluation.md -> images/ID.png, or an answer in the results."""
    values, task = row.values, row.values.get("task", "image")
    if task not in list(REPORT_SETTINGS):
        raise RowError(f"task: expected one of {', '.join(REPORT_SETTINGS)}, got {task!r}; choose one.")
    known = REPORT_SETTINGS[task].keys() | JOB_KEYS | KEYS_OF_TASKS[task]
    if unknown := sorted(values.keys() - known):
        raise RowError(f"{task}: expected only {', '.join(sorted(known))}, got {', '.join(unknown)}; remove it.")
    name, images = row.name(values.get("id", f"{row.number:05d}")), row.paths(values.get("image", []))
    if (task == "edit" and len(images) != 1) or (task != "image" and not images):
        wanted = "one" if task == "edit" else "at least one"
        raise RowError(f"image: expected {wanted} for {task}, got {len(images)}; correct it.")
    choices = values.get("choices", [])
    if not isinstance(choices, list) or (task == "choice" and not choices):
        raise RowError(f"choices: expected a list of words, got {choices!r}; correct it.")
    settings = {key: values[key] for key in REPORT_SETTINGS[task] if key in values}
    settings |= image_size(str(values["size"])) if "size" in values else {}
    samples, seed = int(values.get("samples", 1)), int(values["seed"]) if "seed" in values else None
    names = [name] if samples == 1 else [f"{name}_{i:02d}" for i in range(samples)]
    files = tuple(f"images/{file}.png" for file in names) if task in ("image", "edit") else ()
    prompt, words = row.text("prompt"), tuple(map(str, choices))
    return Record(name, task, prompt, images, files, {}, settings, seed, samples, choices=words)


def image_size(text: str) -> dict[str, int]:
    """ "1024x768" -> width and height. Raises `RowError`."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not found or any(int(side) % 16 for side in found.groups()):
        raise RowError(f"size: expected WIDTHxHEIGHT in multiples of 16, such as 1024x768, got {text!r}; change it.")
    return {"width": int(found[1]), "height": int(found[2])}


def shapes_rows(_: None) -> Rows:
    """The small model's cases, round by round one of each task."""
    from cases import all_cases

    return ((name, partial(dict, name=name, case=case)) for name, case in all_cases())


def shapes(row: DataRow) -> Record:
    """A case of `small_model/cases.py`."""
    from cases import source_files

    name, case = row.values["name"], row.values["case"]
    files = (f"images/{name}.png",) if case.scene else ()
    return Record(name, case.task, case.prompt, tuple(source_files(case)), files, row=row.values)


SHAPES: Settings = {
    "paint": {**REPORT_SETTINGS["image"], "width": 128, "height": 128, "steps": 20},
    **{task: {**REPORT_SETTINGS["edit"], "steps": 20} for task in ("edit", "masked")},
    **{task: {**REPORT_SETTINGS["question"], "max_new_tokens": 24} for task in ("ask", "describe", "chat")},
    "judge": {},
}
IMAGE, EDIT, CHOICE, QUESTION = ({task: REPORT_SETTINGS[task]} for task in ("image", "edit", "choice", "question"))
SUITES = {
    "geneval": Suite(json_lines, geneval, IMAGE),
    "dpg": Suite(text_files, dpg, IMAGE),
    "imgedit": Suite(json_records, imgedit, EDIT),
    "gedit": Suite(gedit_rows, gedit, EDIT),
    "vqa": Suite(vqa_rows, vqa, CHOICE | QUESTION),
    "jobs": Suite(json_lines, job, REPORT_SETTINGS),
    "shapes": Suite(shapes_rows, shapes, SHAPES),
}
