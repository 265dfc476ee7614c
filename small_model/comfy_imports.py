"""Makes a ComfyUI on the CPU, the pack and the pipeline of `benchmarks/` importable in this process."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def set_up_imports(comfyui: Path) -> None:
    """Call it before the first import of ComfyUI's."""
    sys.path[:0] = [str(HERE.parent / "scripts"), str(comfyui)]
    sys.path += [str(HERE.parent / "benchmarks"), str(HERE)]  # behind everything else: their modules have plain names
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import torch

    from import_core import import_core

    torch.set_num_threads(1)
    import_core()
