"""Images of the small model with different sampling settings, made by the pack in this process.

ComfyUI must be importable, and its device chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.samplers
import flat_shapes
import torch
from cases import Case
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from torch import Tensor

from native_pipeline import ImageSpec, NativePipeline
from nodes import VAEDecodeTiled
from ovis_core.schedule import SCHEDULER
from ovis_core.weights import built_in
from ovis_core.weights.precision import PRECISIONS

SCHEDULERS = (SCHEDULER, "simple", "beta")

Patch = Callable[[Any], Any]  # MODEL -> MODEL


@dataclass(frozen=True)
class Setting:
    """One row of the table; what is not named is the default: 20 steps, the report's scales, euler, ovis_u1.

    task       of `cases.py`: "paint" or "edit"
    max_cases  maximum number of cases; None: no limit
    """

    group: str
    name: str
    patch: Patch = field(default=lambda model: model)
    weight_dtype: str = "default"
    steps: int = built_in.STEPS
    sampler: str = "euler"
    scheduler: str = SCHEDULER
    guidance: dict[str, float] = field(default_factory=dict)
    tile: int | None = None  # pixels a side of the VAE's tiles
    task: str = "paint"
    max_cases: int | None = None


def settings() -> Iterator[Setting]:
    """Every row."""
    yield Setting("default", "20 steps, txt_cfg 5, euler, ovis_u1")
    for steps in (4, 6, 8, 10, 50):
        yield Setting("steps", f"{steps} steps", steps=steps)
    for scale in (1.0, 2.0, 3.0, 8.0):
        yield Setting("guidance", f"txt_cfg {scale:g}", guidance={"txt_cfg": scale})
    yield Setting("edit", "edit: txt_cfg 6, img_cfg 1.5", task="edit")
    for txt_cfg, img_cfg in ((1.0, 1.0), (6.0, 1.0), (6.0, 3.0), (3.0, 1.5), (10.0, 1.5)):
        scales = {"txt_cfg": txt_cfg, "img_cfg": img_cfg}
        yield Setting("edit", f"edit: txt_cfg {txt_cfg:g}, img_cfg {img_cfg:g}", task="edit", guidance=scales)
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
    for sampler in comfy.samplers.KSampler.SAMPLERS:
        if not sampler.endswith("_gpu"):  # the same, with the noise made on the GPU
            for scheduler in SCHEDULERS:
                yield Setting("samplers", f"{sampler}, {scheduler}", sampler=sampler, scheduler=scheduler, max_cases=10)


def _cached(node: Any, threshold: float) -> Patch:
    return lambda model: node.execute(model, threshold, 0.15, 0.95, False)[0]


class SmallModelPipeline(NativePipeline):
    """The pack with one model in one precision."""

    def __init__(self, file: Path, weight_dtype: str) -> None:
        super().__init__(file, weight_dtype)
        self.passes = 0
        self.model.model.diffusion_model.final_layer.register_forward_hook(self._count)

    def _count(self, _: Any, __: Any, out: Tensor) -> None:
        self.passes += len(out)

    def make_image(self, setting: Setting, case: Case, seed: int) -> Tensor:
        """The image of a case, (3, 128, 128) in 0..1."""
        return self.decode(setting, self.sample(setting, case, seed))

    @torch.inference_mode()
    def sample(self, setting: Setting, case: Case, seed: int) -> Tensor:
        """The latent of a case, (1, 4, 16, 16)."""
        side = flat_shapes.SIDE
        edited = case.task == "edit"
        source = flat_shapes.draw(case.sources).permute(0, 2, 3, 1) if edited else None
        sampling = {"steps": setting.steps, "sampler": setting.sampler, "scheduler": setting.scheduler}
        image = ImageSpec(side, side, edit=edited, source=source, prompt=case.prompt, seed=seed, **sampling)
        return self.latent(image, setting.patch(self.model), **setting.guidance)["samples"]

    @torch.inference_mode()
    def decode(self, setting: Setting, latent: Tensor) -> Tensor:
        """A latent as a picture (3, 128, 128) in 0..1."""
        if setting.tile:
            (image,) = VAEDecodeTiled().decode(self.vae, {"samples": latent}, setting.tile, 16)
        else:
            image = self.vae.decode(latent)
        return image[0].permute(2, 0, 1).float()
