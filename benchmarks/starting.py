"""The start of every benchmark: the folder of a ComfyUI, and its core in this process."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path

if importlib.util.find_spec("torch") is None:
    sys.exit(f"error: {sys.executable} has no torch; run this with the Python of your ComfyUI.")

ROOT = Path(__file__).resolve().parent.parent

# Threads that spin while they wait become many times slower if other work shares the cores. Torch reads this once.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with the arguments of all benchmarks; read it with `parse`."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument(
        "--comfyui",
        type=Path,
        default=os.environ.get("COMFYUI_PATH"),
        help="folder of a ComfyUI (default: COMFYUI_PATH)",
    )
    found.add_argument("--json", type=Path, help="also write the results to this file")
    return found


def parse(line: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, after checking the folder of ComfyUI."""
    args = line.parse_args()
    if not args.comfyui or not (args.comfyui / "main.py").is_file():
        line.error(f"--comfyui: expected the folder of a ComfyUI, got {args.comfyui}; choose one that has main.py")
    return args


def start_comfyui(comfyui: Path, **flags: bool) -> None:
    """Makes ComfyUI's core and `ovis_core` importable; ComfyUI reads only `flags`, not our arguments."""
    sys.path[:0] = [str(comfyui), str(ROOT / "scripts"), str(ROOT / "benchmarks")]
    from import_core import import_core

    import_core()
    import comfy.cli_args

    for name, value in flags.items():
        setattr(comfy.cli_args.args, name, value)


def qwen25(comfyui: Path) -> Path:
    """The tokenizer files that every ComfyUI has."""
    return comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer"
