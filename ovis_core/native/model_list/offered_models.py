"""The models that Ovis-U1 Load Model offers: those in ComfyUI's folders, then the built-in one if its file is there."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import folder_paths

from ...weights import built_in
from ...weights.checkpoint import Checkpoint, open_model
from . import folders, missing_model, model_search

FOLDER = "ovis_u1"  # in ComfyUI's folder for temporary files


def names() -> list[str]:
    """Names that the loader lists. The built-in model comes last, so it is the default only if there is no other."""
    found = [name for name in model_search.find_models() if name != built_in.NAME]
    return [*found, built_in.NAME] if built_in.is_there() else found


def why_missing(name: str) -> str:
    """An error message if no model has this name; empty if one has it."""
    if _is_built_in(name):
        return ""
    problem = missing_model.why_missing(name)
    if problem and names() == [built_in.NAME]:
        return (
            f"{problem.removesuffix('.')}, or choose {built_in.NAME!r}, which needs no download and draws "
            f"{built_in.DRAWS}."
        )
    return problem


def fingerprint(name: str) -> str:
    """Changes when the model's files do."""
    if _is_built_in(name):
        return built_in.fingerprint()
    path = model_search.find_model(name)
    return name if path is None else folders.fingerprint(path)


def open_named(name: str) -> Checkpoint:
    """Opens and checks the model of this name; the built-in one is unpacked first.

    Raises ValueError if there is none, and `CheckpointError` if it cannot be used.
    """
    if _is_built_in(name):
        file = built_in.unpack(Path(folder_paths.get_temp_directory()) / FOLDER)
        side = built_in.SIDE
        logging.info("Ovis-U1: %s draws only %s, at %d x %d pixels.", built_in.NAME, built_in.DRAWS, side, side)
        return dataclasses.replace(open_model(file), side=side)
    path = model_search.find_model(name)
    if path is None:
        raise ValueError(why_missing(name))
    return open_model(path)


def _is_built_in(name: str) -> bool:
    return name == built_in.NAME and built_in.is_there()
