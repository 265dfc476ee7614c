"""Converts a model to one file or to one for each part, in another precision.

    python scripts/convert.py models/ovis_u1/Ovis-U1-3B models/checkpoints/ovis-u1.safetensors
    python scripts/convert.py SOURCE FOLDER --parts --dtype fp8_scaled

Run it with ComfyUI's Python.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from console import bar, guarded, show
from import_core import import_core

if TYPE_CHECKING:
    from ovis_core.weights.checkpoint import Checkpoint
    from ovis_core.weights.precision import Precision

PLACES = {"diffusion_model": "diffusion_models", "text_encoder": "text_encoders", "vae": "vae"}  # in ComfyUI's models


def main() -> int:
    """Command line."""
    import_core()
    from ovis_core.weights.safetensors_file import CheckpointError

    args = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that partial files are removed then too
    try:
        files, formats = convert(args)
    except CheckpointError as error:
        show("", last=True)
        print(error, file=sys.stderr)
        return 1
    show("", last=True)
    chosen = choices()[args.dtype]
    if (chosen.large is not None or chosen.format is not None) and formats:
        print(f"The source is already quantized ({listed(formats)}); those matrices were not changed.")
    for file in files:
        print(f"{file}  {file.stat().st_size / 1e9:.2f} GB")
    if args.parts:
        print("Now move them into ComfyUI's models folder, where Ovis-U1 Load Parts finds them:")
        for name, place in part_files().items():
            print(f"  {name} into {place}")
    return 0


def arguments() -> argparse.Namespace:
    """The command line, with `source` and `out` as paths."""
    from ovis_core.weights import built_in

    names = listed(part_files())
    parser = argparse.ArgumentParser(description="Convert an Ovis-U1 model to one file, or to one file for each part.")
    parser.add_argument("source", help=f"a release folder, a file with all parts, or {built_in.SHORT_NAME}")
    parser.add_argument("out", help="the file to write, or with --parts the folder")
    parser.add_argument("--parts", action="store_true", help=f"write {names} into the folder `out`")
    parser.add_argument(
        "--dtype",
        choices=list(choices()),
        default="default",
        help="type of the weights of the decoder and the text encoder (default: unchanged)",
    )
    parser.add_argument(
        "--check-values", action="store_true", help="first read every weight, and stop if one is NaN or infinite"
    )
    args, unknown = parser.parse_known_args()
    if unknown:
        always = f"; leave out file names with --parts, which writes {names}" if args.parts else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{always}")
    if not args.source or not args.out:
        parser.error("source and out: expected two paths, got an empty one; give both")
    args.source, args.out = Path(args.source), Path(args.out)
    return args


def choices() -> dict[str, Precision]:
    """The values of --dtype."""
    from ovis_core.weights.precision import PRECISIONS, QUANTIZED_PRECISIONS

    return {name: choice for name, choice in PRECISIONS.items() if not choice.fast} | QUANTIZED_PRECISIONS


def part_files() -> dict[str, str]:
    """The files that --parts writes, each with its folder in ComfyUI's models folder."""
    from ovis_core.weights.conversion import NAMES

    return {f"{name}.safetensors": PLACES[name] for name in NAMES.values()}


def convert(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """Writes the files; returns them and the source's quantized formats. Raises CheckpointError."""
    from ovis_core.weights import built_in
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.component_checks import check_values
    from ovis_core.weights.conversion import write_one, write_parts
    from ovis_core.weights.safetensors_file import CheckpointError

    if not args.parts and args.out.suffix != ".safetensors":
        raise CheckpointError(
            f"out: expected a file name that ends in .safetensors, got {args.out}; change it, or use --parts."
        )
    if args.parts and args.out.suffix == ".safetensors":
        raise CheckpointError(
            f"out: expected a folder with --parts, got {args.out}; choose a folder for {listed(part_files())}."
        )
    write = write_parts if args.parts else write_one
    source = args.source
    with tempfile.TemporaryDirectory() as folder:
        named = not source.exists() and str(source) in (built_in.SHORT_NAME, built_in.NAME)
        if named or source.resolve() == built_in.FILE:
            source = built_in.unpack(Path(folder))
        opened = open_model(source)
        if args.check_values:
            for component in opened.components.values():
                check_values(component.entries.values())
        files = write(opened, args.out, choices()[args.dtype], report)
        return files, formats_in(opened)


def listed(names: Iterable[str]) -> str:
    """Joins names with commas and "and"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def formats_in(opened: Checkpoint) -> list[str]:
    """The formats of a model's quantized layers, and "fp8" if it has weights in 8 bits without scales."""
    from ovis_core.weights.components import VAE
    from ovis_core.weights.lazy_tensors import FP8, TensorReader, lazy_tensors
    from ovis_core.weights.quantization import plain_tensors, quantized_layers

    found = set()
    for kind, component in opened.components.items():
        tensors = {} if kind == VAE else lazy_tensors(component.entries, TensorReader())
        found |= set(quantized_layers(tensors).values())
        found |= {"fp8" for tensor in plain_tensors(tensors).values() if tensor.dtype == FP8}
    return sorted(found)


def report(done: int, total: int, doing: str) -> None:
    """Shows the progress."""
    show(f"{bar(done, total)}  {doing}")


if __name__ == "__main__":
    sys.exit(guarded(main))
