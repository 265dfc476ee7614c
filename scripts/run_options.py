"""The options --comfyui and --model of several commands, and the device that ComfyUI runs on."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import workspace
from console import UserError
from import_core import import_core


def add_comfyui_option(parser: argparse.ArgumentParser) -> None:
    """Adds --comfyui, which may be left out if COMFYUI_PATH is set."""
    named = os.environ.get("COMFYUI_PATH")
    text = "folder of a ComfyUI (default: COMFYUI_PATH)"
    parser.add_argument("--comfyui", type=Path, default=named, required=not named, help=text)


def find_device() -> tuple[str, list[str]]:
    """The device that PyTorch will run on, and ComfyUI's arguments for it."""
    import torch

    if torch.cuda.is_available():
        return "cuda", []
    if torch.backends.mps.is_available():
        return "mps", []
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu", []
    return "cpu", ["--cpu"]


@contextlib.contextmanager
def model_errors() -> Iterator[None]:
    """Raises the pack's errors about weights as UserErrors about --model."""
    import_core()
    from ovis_core.weights.safetensors_file import CheckpointError

    try:
        yield
    except CheckpointError as error:
        raise UserError(f"--model: {error}") from error


def checked_model(model: Path | None, weight_dtype: str) -> Path:
    """The model's path, by default the built-in model's; reads headers only. Raises UserError if it is not usable."""
    with model_errors():
        from ovis_core.weights import built_in
        from ovis_core.weights.checkpoint import open_model
        from ovis_core.weights.precision import PRECISIONS

        if weight_dtype not in PRECISIONS:
            raise UserError(
                f"--weight-dtype: expected one of {', '.join(PRECISIONS)}, got {weight_dtype!r}; choose one."
            )
        if model in (None, built_in.FILE) and built_in.is_there():
            model = built_in.unpack(workspace.home() / "built_in")
        if not model or not model.exists():
            raise UserError(f"--model: {model or built_in.FILE.name} does not exist; choose a folder or a file.")
        open_model(model)
    return model
