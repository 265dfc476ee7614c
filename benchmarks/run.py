"""Measures the speed of everything, compared with the authors' code, with the device's limits, and with each speed
feature.

    python benchmarks/run.py --comfyui PATH [--reference FOLDER] [--small] [--json FILE]
    python benchmarks/run.py --comfyui PATH --count [--reference FOLDER]

Run it with the Python of that ComfyUI. Weights are random and nothing is downloaded. Variants take turns in one run, so
their ratios are right even if other work slows the machine; seconds are printed for GPUs only. `--reference` names a
folder of the release: its own code runs too, on the same weights, and must give the same results first. `--count`
measures no time: it counts kernels and bytes of a pass at full size, and the graphs of torch.compile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starting import parse, parser, qwen25, start_comfyui

if TYPE_CHECKING:
    from measuring import Measured
    from variants import Variants

SIZES = {"gpu": ["512x512", "1024x1024", "1536x1024"], "cpu": ["128x128", "256x192"]}
EDIT_SIDE = {"gpu": 992, "cpu": 256}
STEPS = {"gpu": 50, "cpu": 4}
TOKENS = {"gpu": 128, "cpu": 32}
VARIANTS = ("ours", "compiled", "EasyCache", "LazyCache", "interval", "fp8", "generate", "authors")
BATCH = {"gpu": 4, "cpu": 2}
LOAD = "load in a new process"


def arguments() -> argparse.Namespace:
    """The command line, with defaults that depend on the device."""
    import torch

    line = parser(__doc__.split("\n")[0])
    line.add_argument("--small", action="store_true", help="measure a small model with fewer, narrower layers")
    line.add_argument(
        "--device",
        choices=("gpu", "cpu"),
        default="gpu" if torch.cuda.is_available() else "cpu",
        help="device (default: gpu, if there is one)",
    )
    line.add_argument("--full", action="store_true", help="use the full size on a CPU too")
    line.add_argument("--reference", type=Path, help="folder of a release: its own code runs too, on the same weights")
    line.add_argument("--sizes", nargs="+", metavar="WIDTHxHEIGHT", help="image sizes of text to image")
    line.add_argument("--edit-side", type=int, help="side of the square image of an edit, in pixels")
    line.add_argument("--steps", type=int, help="denoising steps of an image")
    line.add_argument("--tokens", type=int, help="tokens of each answer about images")
    line.add_argument("--batch", type=int, help="images per batch, in the rows with batches")
    line.add_argument("--repeat", type=int, default=3, help="runs of each variant, of which the median is reported")
    line.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="VARIANT",
        help=f"measure only these variants, out of {' '.join(VARIANTS)}",
    )
    line.add_argument(
        "--rows",
        nargs="+",
        metavar="PATTERN",
        help="measure only rows whose names match one of these regular expressions",
    )
    line.add_argument("--dtype", choices=("bfloat16", "float32"), help="type of the weights")
    line.add_argument("--count", action="store_true", help="count kernels, bytes and graphs instead of measuring time")
    args = parse(line)
    args.sizes = args.sizes or SIZES[args.device]
    if wrong := [size for size in args.sizes if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size)]:
        line.error(f"--sizes: expected WIDTHxHEIGHT, such as 1024x768, got {wrong[0]!r}")
    args.sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    if wrong := [side for side in (*sum(args.sizes, ()), args.edit_side or 0) if side % 16]:
        line.error(f"--sizes, --edit-side: expected multiples of 16 pixels, got {wrong[0]}")
    # The first token of an answer is timed separately.
    for name, least in {"edit_side": 16, "steps": 1, "tokens": 2, "batch": 1, "repeat": 1}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            line.error(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    if args.json and not args.json.absolute().parent.is_dir():
        line.error(
            f"--json: the folder {args.json.absolute().parent} does not exist; create it, or choose another file"
        )
    if args.reference and not (args.reference / "modeling_ovis_u1.py").is_file():
        line.error(f"--reference: {args.reference} has no modeling_ovis_u1.py; choose the folder of a release")
    for pattern in args.rows or ():
        try:
            re.compile(pattern)
        except re.error as error:
            line.error(f"--rows: expected a regular expression, got {pattern!r} ({error}); correct it")
    if args.variants and args.variants == ["authors"] and not args.reference:
        line.error("--variants: authors needs the authors' code; choose the folder of a release with --reference")
    args.edit_side = args.edit_side or EDIT_SIDE[args.device]
    args.steps = args.steps or STEPS[args.device]
    args.tokens = args.tokens or TOKENS[args.device]
    # On a CPU compiling takes longer than everything else.
    args.variants = args.variants or [name for name in VARIANTS if args.device == "gpu" or name != "compiled"]
    args.batch = args.batch or BATCH[args.device]
    args.small = args.small or (args.device == "cpu" and not args.full)
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    return args


def main() -> None:
    """Measures or counts, and prints the results."""
    args = arguments()
    os.environ.setdefault("TQDM_DISABLE", "1")  # ComfyUI's progress bars would be printed into the tables
    import torch

    if args.count:
        # The attention that ComfyUI uses by default on a GPU.
        start_comfyui(args.comfyui, cpu=True, use_pytorch_cross_attention=True)
    else:
        start_comfyui(args.comfyui, cpu=args.device == "cpu")
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        found = count(args, Path(folder)) if args.count else measure(args, Path(folder))
    save(args, found)


def save(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """Writes the results to the file of --json."""
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def count(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Kernels and bytes of a pass, and graphs of torch.compile."""
    from compiling import compiled_graphs
    from passes import count_passes
    from tables import markdown

    passes = [(name, variant, *dataclasses.astuple(counts)) for name, variant, counts in count_passes(args.reference)]
    shown = [(*row[:3], f"{row[3] / 1e9:.1f}", f"{row[4] / 1e12:.2f}") for row in passes]
    print(markdown(shown, "full size, bfloat16", "variant", "kernels", "GB read and written", "TFLOP"), flush=True)
    graphs = list(compiled_graphs(folder, qwen25(args.comfyui)))
    print()
    print(markdown([(name, *found.values()) for name, found in graphs], "torch.compile of", "graphs", "graph breaks"))
    return {
        "passes": [dict(zip(("pass", "variant", "kernels", "bytes", "flops"), row, strict=True)) for row in passes],
        "graphs": dict(graphs),
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measures every row."""
    import comfy.utils
    import torch
    from comfy import model_management

    from full_size import FULL, NARROW, write_release
    from measuring import Meter, device_rates
    from tables import time_table
    from variants import Variants
    from workloads import workloads

    comfy.utils.PROGRESS_BAR_ENABLED = False
    device, dtype = model_management.get_torch_device(), getattr(torch, args.dtype)
    config = NARROW if args.small else FULL
    write_release(config, folder, dtype, qwen25(args.comfyui), args.reference, device)
    models = Variants(config, folder, dtype, device, args.reference, args.variants)
    on_gpu = device.type == "cuda"
    product, copy = device_rates(device, dtype)
    name = torch.cuda.get_device_name(device) if on_gpu else "CPU"
    head = heading(args, name)
    print(head)
    if on_gpu:
        print(f"matrix product {product / 1e12:.0f} TFLOP/s, copy {copy / 1e9:.0f} GB/s")
    errors = models.errors(args.tokens)
    for what, error in errors.items():
        print(f"checked first: {what}: ours differs by {error:.1e}")
    if not models.authors:
        print("not compared with the authors' code, which needs --reference")
    print(flush=True)

    meter = Meter(models, device, args.repeat, product)
    measured = load_times(models, args, folder, on_gpu) if asked(LOAD, args) else []
    found = {
        "head": head,
        "device": name,
        "small": args.small,
        "product": product,
        "copy": copy,
        "errors": errors,
        "weights": {name: sum(weight.nbytes for weight in models.weights(name)) for name in models.with_weights},
        "rows": [dataclasses.asdict(row) for row in measured],
    }
    for row in workloads(models, args, copy):
        if row.variants and asked(row.name, args):
            variants = meter.measure(row)
            measured += variants
            print(time_table(variants, seconds=on_gpu).splitlines()[-1], file=sys.stderr, flush=True)
            found["rows"] += [dataclasses.asdict(variant) for variant in variants]
            save(args, found)  # a long run may be stopped before its end
    if not measured:
        raise SystemExit(f"--rows: no row's name matches {' or '.join(args.rows)}; leave out --rows to see all names.")
    print_tables(measured, on_gpu)
    return found


def heading(args: argparse.Namespace, device: str) -> str:
    """Device, versions, type and size of the model, and number of steps."""
    import comfyui_version
    import torch

    size = "small model" if args.small else "full size"
    versions = f"torch {torch.__version__}, ComfyUI {comfyui_version.__version__}"
    return f"{device}, {versions}, {args.dtype}, {size}, {args.steps} steps"


def load_times(models: Variants, args: argparse.Namespace, folder: Path, on_gpu: bool) -> list[Measured]:
    """The seconds that each variant with its own weights takes to load in a new process, in turns."""
    from load_memory import alone, load_variant
    from measuring import Measured

    def seconds(variant: str) -> float:
        return alone(load_variant, args.comfyui, not on_gpu, variant, folder, args.reference, args.dtype)

    turns = [{variant: seconds(variant) for variant in models.with_weights} for _ in range(args.repeat)]
    return [Measured(LOAD, variant, [turn[variant] for turn in turns]) for variant in models.with_weights]


def print_tables(measured: list[Measured], on_gpu: bool) -> None:
    """Prints times, memory, first runs and growth."""
    from tables import first_table, growth_table, memory_table, time_table

    print(time_table(measured, seconds=on_gpu), "\n")
    print(memory_table(measured), "\n")
    if any(row.first for row in measured):
        print(first_table(measured, seconds=on_gpu), "\n")
    print(growth_table(measured))


def asked(row: str, args: argparse.Namespace) -> bool:
    """Whether a row was asked for."""
    return not args.rows or any(re.search(pattern, row) for pattern in args.rows)


if __name__ == "__main__":
    main()
