"""Measures the three tasks in a running ComfyUI at full size, with as much free memory as smaller GPUs have.

    python benchmarks/small_gpus.py --comfyui PATH [--gib 80 12 8] [--options="--disable-dynamic-vram"]

Run it with the Python of that ComfyUI, on an NVIDIA GPU. Weights are random. The rest of the GPU's memory is taken by
this process while the server runs.
"""

from __future__ import annotations

import io
import json
import shlex
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starting import ROOT, parse, parser, qwen25, start_comfyui

GIB = 1 << 30
NAME = "random"
POLL = 0.01  # seconds between two readings of the GPU's free memory
COLUMNS = (
    "free memory, GiB",
    "options",
    "task",
    "seconds",
    "most memory, GiB",
    "difference to the first row: mean, most",
)


def main() -> None:
    """Writes a random model, and measures each amount of memory with each set of options."""
    line = parser(__doc__.split("\n")[0])
    line.add_argument("--gib", type=float, nargs="+", default=[80.0, 12.0, 8.0], help="free memory of the GPU, in GiB")
    line.add_argument("--options", action="append", help='options of ComfyUI, as --options="..."; may be repeated')
    line.add_argument("--side", type=int, default=1024, help="width and height in pixels")
    line.add_argument("--steps", type=int, default=20, help="denoising steps")
    line.add_argument("--small", action="store_true", help="measure a small model with fewer, narrower layers")
    args = parse(line)
    import torch

    if not torch.cuda.is_available():
        line.error("no NVIDIA GPU was found; run this on a machine with one")
    start_comfyui(args.comfyui, cpu=True)
    from full_size import FULL, NARROW, write_release
    from tables import markdown

    rows, first = [], {}
    with tempfile.TemporaryDirectory() as folder:
        release = Path(folder) / NAME
        release.mkdir()
        config, gpu = NARROW if args.small else FULL, torch.device("cuda")
        write_release(config, release, torch.bfloat16, qwen25(args.comfyui), device=gpu)
        torch.cuda.empty_cache()
        for gib in args.gib:
            for options in args.options or [""]:
                for task, seconds, peak, result in measure(args, release, gib, shlex.split(options)):
                    wrong = difference(result, first.setdefault(task, result))
                    rows.append((f"{gib:g}", options, task, f"{seconds:.1f}", f"{peak / GIB:.1f}", wrong))
                    print(markdown(rows, *COLUMNS).splitlines()[-1], flush=True)
    print("\n" + markdown(rows, *COLUMNS))
    if args.json:
        args.json.write_text(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=1))


def measure(args: Any, release: Path, gib: float, options: list[str]) -> Iterator[tuple[str, float, int, Any]]:
    """(task, seconds, most bytes of the GPU, its image or text) in a server with at most `gib` of free GPU memory."""
    import workspace
    from comfy_server import ComfyServer
    from workflow_runner import images_of, put, run, text_of, workflow_of

    with tempfile.TemporaryDirectory() as folder, fill_gpu_memory(gib):
        before = used_bytes()
        base = workspace.make_base(Path(folder), ROOT, args.comfyui.resolve())
        workspace.link_folder(release, base / "models" / "ovis_u1" / NAME)
        source = base / "input" / "source.png"
        picture(args.side).save(source)
        with ComfyServer(args.comfyui, base, options) as server:
            info = server.object_info()

            def task(name: str, seed: int) -> Any:
                workflow = workflow_of(name, info, model=NAME, seed=seed, steps=args.steps)
                put(workflow, info, "PrimitiveInt", value=args.side)
                put(workflow, info, "LoadImage", image=source.name)
                put(workflow, info, "OvisU1Understand", max_new_tokens=128)
                with most_memory(before) as peak:
                    result = run(server, info, workflow, name)
                return result.seconds, peak[0], result

            for name, seed in (("text_to_image", 1), ("edit", 1), ("understand", 1), ("text_to_image", 2)):
                seconds, peak, result = task(name, seed)
                made = text_of(server, result) if name == "understand" else images_of(server, result)[0]
                yield f"{name}{', again' if seed > 1 else ''}", seconds, peak, made
            log = server.log_text()
            for line in log.splitlines():
                if any(word in line for word in ("Ovis-U1", "rror", "DynamicVRAM", "aimdo", "Traceback")):
                    print("   ", line[:200])


@contextmanager
def fill_gpu_memory(gib: float) -> Iterator[None]:
    """Allocates GPU memory until only `gib` are free; nothing if fewer are free already."""
    import torch

    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(max(0, free - int(gib * GIB)), dtype=torch.uint8, device="cuda")
    yield
    del filler
    torch.cuda.empty_cache()


def used_bytes() -> int:
    """Bytes of the GPU that are in use, by any process."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free


@contextmanager
def most_memory(before: int) -> Iterator[list[int]]:
    """The most bytes of the GPU that were in use in this context, without the `before` bytes of this process."""
    peak, done = [0], threading.Event()

    def poll() -> None:
        while not done.wait(POLL):
            peak[0] = max(peak[0], used_bytes() - before)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def picture(side: int) -> Any:
    """An image of smooth colours."""
    from PIL import Image

    return Image.radial_gradient("L").resize((side, side)).convert("RGB")


def difference(result: Any, first: Any) -> str:
    """How far an image is from another, in 8-bit steps; for texts whether they are the same."""
    import numpy as np
    from PIL import Image

    if isinstance(result, str):
        return "same" if result == first else "different"
    ours, theirs = (np.asarray(Image.open(io.BytesIO(file)), dtype=float) for file in (result, first))
    apart = abs(ours - theirs)
    return f"{apart.mean():.4f}, {apart.max():.0f}"


if __name__ == "__main__":
    main()
