"""Measures the memory that loading a model takes, relative to the size of its file.

    python benchmarks/load_memory.py --comfyui PATH

Run it with the Python of that ComfyUI, on Linux. It writes a random model of full size for this.
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from starting import parse, parser, start_comfyui

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")
PAGE = 4096  # bytes per page of memory


def main() -> None:
    """Writes a file and loads it, each in its own process."""
    line = parser(__doc__.split("\n")[0])
    line.add_argument("--small", action="store_true", help="measure a small model with fewer layers")
    line.add_argument("--weight-dtype", default="default", help="as in Ovis-U1 Load Model")
    args = parse(line)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.safetensors"
        alone(write, args.comfyui, args.small, file)
        peak, kept, seconds = alone(load_file, args.comfyui, file, args.weight_dtype)
        size = file.stat().st_size
    print(
        "| weight_dtype | file, GB | most memory while loading, GB | relative to the file | afterwards, GB | seconds |"
    )
    print("|---|---|---|---|---|---|")
    numbers = f"{size / 1e9:.2f} | {peak / 1e9:.2f} | {peak / size:.0%} | {kept / 1e9:.2f} | {seconds:.1f}"
    print(f"| {args.weight_dtype} | {numbers} |")
    if args.json:
        args.json.write_text(json.dumps({"file": size, "peak": peak, "kept": kept}), encoding="utf-8")


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs the function in a process that then ends and frees its memory; returns the result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write(comfyui: Path, small: bool, file: Path) -> None:
    """Writes a random model."""
    start_comfyui(comfyui, cpu=True)
    from full_size import FULL, SHALLOW, write_file

    write_file(SHALLOW if small else FULL, file)


def load_file(comfyui: Path, file: Path, weight_dtype: str) -> tuple[int, int, float]:
    """Loads one file; returns the results of `measured`."""
    start_comfyui(comfyui, cpu=True)
    import comfy.model_management  # noqa: F401
    import torch

    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.precision import PRECISIONS

    torch.zeros(1 << 20).bfloat16().float()

    def load_and_read() -> tuple[Any, Any, Any]:
        # Weights that are mapped come into memory when they are read.
        model, clip, vae = loaded = load(open_model(file), PRECISIONS[weight_dtype])
        for module in (model.model, clip.cond_stage_model, vae.first_stage_model):
            for weight in (*module.parameters(), *module.buffers()):
                weight.flatten().view(torch.uint8)[::PAGE].sum()
        return loaded

    return measured(load_and_read)


def load_variant(comfyui: Path, on_cpu: bool, variant: str, release: Path, code: Path | None, dtype: str) -> float:
    """Seconds to load a variant of `variants.Variants` onto the device, until all of its weights are in its memory.

    code  a release's folder with the authors' code, for their variant
    """
    start_comfyui(comfyui, cpu=on_cpu)
    import torch
    from comfy import model_management

    device = model_management.get_torch_device()
    torch.zeros(1, device=device)
    if variant == "authors":
        from reference import Reference, authors

        authors(code, "modeling_ovis_u1")
        load: Callable[[], Any] = partial(Reference, code, release, getattr(torch, dtype), device)
    else:
        from native_pipeline import NativePipeline

        load = partial(NativePipeline, release, *(["fp8_e4m3fn_fast"] if variant == "fp8" else []))
    from clock import now

    with torch.inference_mode():
        start = now()
        for weight in load().weights():
            weight.flatten().view(torch.uint8)[::PAGE].sum()
        return now() - start


def measured(load: Callable[[], Any]) -> tuple[int, int, float]:
    """(peak memory while loading, memory afterwards, seconds); bytes above the process's memory before."""
    from clock import now

    before = memory("VmRSS")
    REFERENCES.write_text("5", encoding="ascii")  # resets the peak
    start = now()
    loaded = load()
    seconds = now() - start
    peak, after = memory("VmHWM"), memory("VmRSS")
    del loaded
    return peak - before, after - before, seconds


def memory(field: str) -> int:
    """A line of the process's status, in bytes."""
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
