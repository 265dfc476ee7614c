"""The device that ComfyUI runs on, and errors for the option --model; for the demo and evaluation/."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from console import UserError
from import_core import import_core


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
