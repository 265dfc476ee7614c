"""The pack with one model inside this process: prompts become pictures, with one setting or another.

ComfyUI must be importable, and its device chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.samplers
import torch
import world
from cases import make_case
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor

from nodes import VAEDecodeTiled
from ovis_core.native.conditions import text_to_image
from ovis_core.native.guider import OvisGuider
from ovis_core.native.loading import load
from ovis_core.native.sampling import sample
from ovis_core.native.sigmas import SCHEDULER
from ovis_core.weights import built_in
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.precision import PRECISIONS

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
        yield Setting(
            "guidance", f"cfg_start {start:g}, cfg_end {end:g}", guidance={"cfg_start": start, "cfg_end": end}
        )
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

    def paint(self, setting: Setting, prompt: str, seed: int) -> Tensor:
        """(3, 128, 128) in 0..1."""
        return self.decode(setting, self.latent(setting, prompt, seed))

    @torch.inference_mode()
    def latent(self, setting: Setting, prompt: str, seed: int) -> Tensor:
        """(1, 4, 16, 16)."""
        side = world.SIDE
        positive, negative = text_to_image(self.clip, prompt, "", side, side)
        guider = OvisGuider(setting.patch(self.model), positive, negative, **{"txt_cfg": 5.0, **setting.guidance})
        empty = {"samples": torch.zeros(1, 4, side // 8, side // 8)}
        return sample(guider, empty, seed, setting.sampler, setting.scheduler, setting.steps, 1.0)["samples"]

    @torch.inference_mode()
    def decode(self, setting: Setting, latent: Tensor) -> Tensor:
        """A latent as a picture (3, 128, 128) in 0..1."""
        if setting.tile:
            (image,) = VAEDecodeTiled().decode(self.vae, {"samples": latent}, setting.tile, 16)
        else:
            image = self.vae.decode(latent)
        return image[0].permute(2, 0, 1).float()


def cases(count: int) -> Iterator[tuple[str, world.Scene]]:
    """Prompts for text to image with what they ask for; combinations and phrasings that training never met."""
    for case in (make_case("paint", number) for number in range(count)):
        assert case.scene is not None
        yield case.prompt, case.scene
