"""What settings cost in pictures: for each the share painted right beside the decoder's passes.

    COMFYUI_PATH=... python small_model/compare.py [--only caches] [--count 40] [--model FILE]

It runs the pack in a real ComfyUI inside this process, on the CPU, with the Python of an environment that ComfyUI runs
in. The cases are those of `score.py`: combinations and phrasings that training never met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "scripts"), os.environ["COMFYUI_PATH"]]
sys.path.append(str(HERE))  # behind everything else: its modules have plain names

import comfy.cli_args

comfy.cli_args.args.cpu = True

import torch
from import_core import import_core
from torch import Tensor

import_core()

import comfy.samplers
import words
import world
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from nodes import VAEDecodeTiled
from ovis_core import built_in
from ovis_core.checkpoint import open_model
from ovis_core.native.conditions import text_to_image
from ovis_core.native.loading import load
from ovis_core.native.sampling import SCHEDULER, OvisGuider, sample
from ovis_core.precision import PRECISIONS

NEGATIVE = ""
Patch = Callable[[Any], Any]  # MODEL -> MODEL


@dataclass(frozen=True)
class Setting:
    """One row of the table; what is not named is the default: 20 steps, txt_cfg 5, euler on the model's schedule."""

    group: str
    name: str
    patch: Patch = field(default=lambda model: model)
    weight_dtype: str = "default"
    steps: int = built_in.STEPS
    sampler: str = "euler"
    scheduler: str = SCHEDULER
    guidance: dict[str, float] = field(default_factory=dict)
    tile: int | None = None  # pixels a side of the VAE's tiles


def settings() -> Iterator[Setting]:
    """Every row."""
    yield Setting("default", "20 steps, txt_cfg 5, euler, ovis_u1")
    for steps in (4, 6, 8, 10, 50):
        yield Setting("steps", f"{steps} steps", steps=steps)
    for scale in (1.0, 2.0, 3.0, 8.0):
        yield Setting("guidance", f"txt_cfg {scale:g}", guidance={"txt_cfg": scale})
    for start, end in ((0.0, 0.5), (0.0, 0.8), (0.1, 1.0), (0.2, 0.8)):
        yield Setting("guidance", f"cfg_start {start:g}, cfg_end {end:g}", guidance={"cfg_start": start, "cfg_end": end})
    for node in (EasyCacheNode, LazyCacheNode):
        name = node.__name__.removesuffix("Node")
        for threshold in (0.05, 0.1, 0.2, 0.4):
            yield Setting("caches", f"{name} {threshold:g}", patch=_cached(node, threshold))
    for name in PRECISIONS:
        if name != "default":
            yield Setting("weight_dtype", name, weight_dtype=name)
    yield Setting("decode", "VAE Decode (Tiled), tiles of 64 pixels", tile=64)
    for scheduler in (SCHEDULER, "simple", "beta"):
        for sampler in comfy.samplers.KSampler.SAMPLERS:
            if (sampler, scheduler) != ("euler", SCHEDULER):
                yield Setting("samplers", f"{sampler}, {scheduler}", sampler=sampler, scheduler=scheduler)


def _cached(node: Any, threshold: float) -> Patch:
    return lambda model: node.execute(model, threshold, 0.15, 0.95, False)[0]


class Painter:
    """The pack with one model in one precision."""

    def __init__(self, file: Path, weight_dtype: str) -> None:
        self.model, self.clip, self.vae = load(open_model(file), PRECISIONS[weight_dtype])
        self.passes = 0
        self.model.model.diffusion_model.final_layer.register_forward_hook(self._count)

    def _count(self, _: Any, __: Any, out: Tensor) -> None:
        self.passes += len(out)

    @torch.inference_mode()
    def paint(self, setting: Setting, prompt: str, seed: int) -> Tensor:
        """(3, 128, 128) in 0..1."""
        side = world.SIDE
        positive, negative = text_to_image(self.clip, prompt, NEGATIVE, side, side)
        guider = OvisGuider(setting.patch(self.model), positive, negative, **{"txt_cfg": 5.0, **setting.guidance})
        empty = {"samples": torch.zeros(1, 4, side // 8, side // 8)}
        latent = sample(guider, empty, seed, setting.sampler, setting.scheduler, setting.steps, 1.0)
        if setting.tile:
            (image,) = VAEDecodeTiled().decode(self.vae, latent, setting.tile, 16)
        else:
            image = self.vae.decode(latent["samples"])
        return image[0].permute(2, 0, 1).float()


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a file or folder of weights (default: the built-in model)")
    parser.add_argument("--count", type=int, default=40, help="pictures for each setting")
    parser.add_argument("--only", help="groups, with commas between")
    parser.add_argument("--json", type=Path, help="results also as JSON, one line a row; rows that are there are kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = list(_cases(args.count))
    done = [json.loads(line) for line in args.json.read_text().splitlines()] if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        file = args.model or built_in.unpack(Path(folder))
        painters: dict[str, Painter] = {}
        print("| setting | right | passes a picture | time |\n|---|---|---|---|")
        unit = next((row["seconds"] for row in done if row["group"] == "default"), None)
        for setting in settings():
            if args.only and setting.group not in {"default", *args.only.split(",")}:
                continue
            row = next((row for row in done if (row["group"], row["name"]) == (setting.group, setting.name)), None)
            if row is None:
                painter = painters.setdefault(setting.weight_dtype, Painter(file, setting.weight_dtype))
                row = _measure(painter, setting, cases)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(row) + "\n")
            unit = unit or row["seconds"]
            shown = f"{row['right']:.0%}" if row["right"] is not None else "fails"
            print(f"| {row['name']} | {shown} | {row['passes']:.0f} | {row['seconds'] / unit:.2f} |", flush=True)
    return 0


def _cases(count: int) -> Iterator[tuple[str, world.Scene]]:
    from random import Random

    rng = Random(101)
    scenes = [world.make_scene(rng, True) for _ in range(count)]
    for scene in scenes:
        yield words.caption(scene, rng, True), scene


def _measure(painter: Painter, setting: Setting, cases: list[tuple[str, world.Scene]]) -> dict[str, Any]:
    begun, before = time.perf_counter(), painter.passes
    try:
        hits = [
            world.same(world.look(painter.paint(setting, text, seed)), scene)
            for seed, (text, scene) in enumerate(cases)
        ]
        right: float | None = sum(hits) / len(hits)
    except Exception as error:
        print(f"{setting.name}: {type(error).__name__}: {error}", file=sys.stderr)
        right = None
    seconds = (time.perf_counter() - begun) / len(cases)
    passes = (painter.passes - before) / len(cases)
    return {"group": setting.group, "name": setting.name, "right": right, "passes": passes, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
