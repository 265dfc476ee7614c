"""Converts a model to one file or to one for each part, in another precision.

    python scripts/convert.py models/ovis_u1/Ovis-U1-3B models/checkpoints/ovis-u1.safetensors
    python scripts/convert.py SOURCE FOLDER --parts --dtype fp8_scaled

Run it with ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from pathlib import Path
from typing import Any

from console import bar, guarded, show
from import_core import import_core


def main() -> int:
    """Command line."""
    import_core()
    checkpoint, conversion, precision = (
        importlib.import_module(f"ovis_core.{name}") for name in ("checkpoint", "conversion", "precision")
    )
    choices = {name: choice for name, choice in precision.PRECISIONS.items() if not choice.fast} | precision.SCALED
    parser = argparse.ArgumentParser(description="Convert an Ovis-U1 to one file, or to one for each part.")
    parser.add_argument("source", help="a release folder, or a file that holds all parts")
    parser.add_argument("out", help="the file to write, or with --parts the folder")
    parser.add_argument("--parts", action="store_true", help="a file for each part")
    parser.add_argument(
        "--dtype",
        choices=list(choices),
        default="default",
        help="of the decoder's and the text encoder's weights (default: as they are)",
    )
    args = parser.parse_args()
    if not args.source or not args.out:
        parser.error("source and out must not be empty")
    args.source, args.out = Path(args.source), Path(args.out)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half written goes then too
    write = conversion.write_parts if args.parts else conversion.write_one
    try:
        if not args.parts and args.out.suffix != ".safetensors":
            raise checkpoint.CheckpointError(f"{args.out}: the name of the file to write must end in .safetensors.")
        opened = checkpoint.open_model(args.source)
        files = write(opened, args.out, choices[args.dtype], report)
    except checkpoint.CheckpointError as error:
        show("", last=True)
        print(error, file=sys.stderr)
        return 1
    show("", last=True)
    if choices[args.dtype].large is not None and is_eight_bit(opened):
        print("The source is in 8 bits already; those matrices were kept as they are.")
    for file in files:
        print(f"{file}  {file.stat().st_size / 1e9:.2f} GB")
    if args.parts:
        print(
            "Now move them into ComfyUI's models/diffusion_models, models/text_encoders and models/vae, where Ovis-U1 "
            "Load Parts finds them."
        )
    return 0


def is_eight_bit(opened: Any) -> bool:
    """Whether a model's matrices are stored in 8 bits."""
    stored = importlib.import_module("ovis_core.stored")
    return any("float8" in str(weight.dtype) for weight in stored.stored_weights(opened.decoder).values())


def report(done: int, total: int) -> None:
    """Shows how far it is: writing is the first half, reading back the second."""
    show(f"{bar(done, total)}  {'writing' if 2 * done <= total else 'checking'}")


if __name__ == "__main__":
    sys.exit(guarded(main))
