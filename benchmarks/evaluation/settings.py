"""The settings of a run, and of a record that has its own."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from console import UserError

Settings = Mapping[str, Mapping[str, Any]]
"""For each task the inputs of its nodes."""

REPORT: dict[str, dict[str, Any]] = {
    "image": {
        "width": 1024,
        "height": 1024,
        "steps": 50,
        "txt_cfg": 5.0,
        "negative_prompt": "",
        "sampler_name": "euler",
        "scheduler": "ovis_u1",
    },
    "edit": {
        "megapixels": 0.0,
        "steps": 50,
        "txt_cfg": 6.0,
        "img_cfg": 1.5,
        "negative_prompt": "",
        "sampler_name": "euler",
        "scheduler": "ovis_u1",
    },
    "question": {"max_new_tokens": 512, "thinking": False},
    "choice": {},
}
"""As the report has them."""

LEAST = {"steps": 1, "txt_cfg": 0.0, "img_cfg": 0.0, "megapixels": 0.0, "max_new_tokens": 1}
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
SIZE = re.compile(r"(\d+)\s*x\s*(\d+)")


def settings_of(benchmark: str, tasks: Iterable[str], own: Mapping[str, Any], usual: Settings = REPORT) -> Settings:
    """The usual ones of each task, but for those that the command line has. Raises UserError."""
    settings = {task: {name: own.get(name, value) for name, value in usual[task].items()} for task in tasks}
    for name in sorted(own):
        option = f"--{name.replace('_', '-')}"
        task = next((task for task in settings if name in settings[task]), None)
        if task is None:
            raise UserError(f"{option}: {benchmark} has no such setting; leave it out")
        try:
            need_setting(task, name, own[name], usual)
        except ValueError as error:
            raise UserError(f"{option}: {error}") from error
    return settings


def need_setting(task: str, name: str, value: Any, usual: Settings = REPORT) -> Any:
    """A setting's value. Raises ValueError where it is of another kind: ComfyUI would take a list for a link."""
    kind = type(usual[task][name])
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits or (kind is float and not -math.inf < value < math.inf):
        raise ValueError(f"{name} {reprlib.repr(value)} is not {KINDS[kind]}")
    least = LEAST.get(name, -math.inf)
    if not isinstance(value, str) and value < least:
        raise ValueError(f"{name} {value} is less than {least}")
    return value


def size(text: str) -> dict[str, int]:
    """ "1024x768" -> width and height. Raises ValueError."""
    found = SIZE.fullmatch(text)
    if not found or any(int(side) % 16 or not int(side) for side in found.groups()):
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT in multiples of 16 pixels, such as 1024x768")
    return {"width": int(found[1]), "height": int(found[2])}
