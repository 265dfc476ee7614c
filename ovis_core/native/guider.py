"""Guidance with one scale (text) or two (text and image)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.samplers
import node_helpers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .sampling import with_shift

Conds = list[dict[str, Any]]  # a condition after ComfyUI's `process_conds`

EPSILON = 1e-5  # tolerance for sigmas, because schedules round differently
SINGULAR = 1e-3  # if the text's scale is this near to 1, two scales cannot be written as one pair
# Entries of `model_options` that act on guidance, in the order in which core's sampling_function calls them.
GUIDANCE_PATCHES = (
    "sampler_calc_cond_batch_function",
    "sampler_pre_cfg_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
)


class OvisGuider(comfy.samplers.CFGGuider):
    """Guidance with one scale (text) or two (text and image).

    v = uncond + img_cfg (image_only - uncond) + txt_cfg (cond - image_only)

    Guidance is active from the fraction `cfg_start` to the fraction `cfg_end` of the model's schedule, 0 to 1, like
    ComfyUI's percents; otherwise v = cond, in one pass.

    Sets the shift for the latent's size, unless the model has a `model_sampling` patch already.

    Raises TypeError for `image_only` without `img_cfg`, and ValueError if `image_only` has no reference image.
    """

    def __init__(
        self,
        patcher: ModelPatcher,
        positive: list[list[Any]],
        negative: list[list[Any]],
        txt_cfg: float,
        image_only: list[list[Any]] | None = None,
        img_cfg: float | None = None,
        cfg_start: float = 0.0,
        cfg_end: float = 1.0,
    ) -> None:
        super().__init__(patcher)
        self.set_cfg(txt_cfg)
        self.img_cfg = img_cfg
        self.interval = (cfg_start, cfg_end)
        conds = {"positive": positive, "negative": negative}
        if image_only is not None:
            if img_cfg is None:
                raise TypeError("img_cfg: expected a number, because image_only is connected, got None; set img_cfg.")
            if not any(values.get("reference_latents") for _, values in image_only):
                raise ValueError(
                    "image_only: expected conditioning with a reference image, got none; connect image_only of Ovis-U1 "
                    "Edit Encode."
                )
            # As core's DualCFGGuider names it.
            conds["middle"] = node_helpers.conditioning_set_values(image_only, {"prompt_type": "negative"})
        self.inner_set_conds(conds)

    def sample(self, noise: Tensor, latent_image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Samples with the shift for this latent's size."""
        patcher = self.model_patcher
        self.model_patcher = with_shift(patcher, latent_image)
        try:
            return super().sample(noise, latent_image, *args, **kwargs)
        finally:
            self.model_patcher = patcher

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided x0 of one step. Branches whose weight is zero are not run."""
        options = model_options or {}
        two = self._two_branches(timestep, options)
        if two is not None:
            uncond, cond, scale = two
            uncond, cond = self.conds[uncond], self.conds[cond]
        elif any(options.get(name) for name in GUIDANCE_PATCHES):
            uncond, cond, scale = self._as_one_pair(x, timestep)
        else:
            return self._three_branches(x, timestep, options)
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, uncond, cond, scale, model_options=options, seed=seed
        )

    def _two_branches(self, timestep: Tensor, options: dict[str, Any]) -> tuple[str, str, float] | None:
        """(uncond, cond, scale) with v = uncond + scale (cond - uncond), by name; None if it needs all three."""
        txt, img = self.cfg, self.img_cfg
        if not self._guides_at(timestep):
            return "negative", "positive", 1.0
        if "middle" not in self.conds:
            return "negative", "positive", txt
        if options.get("disable_cfg1_optimization", False):  # a patch needs every branch
            return None
        if math.isclose(txt, img):
            return "negative", "positive", txt
        if math.isclose(img, 1.0):
            return "middle", "positive", txt
        if txt == 0.0:
            return "negative", "middle", img
        return None

    def _three_branches(self, x: Tensor, timestep: Tensor, options: dict[str, Any]) -> Tensor:
        # Patches of single passes expect the condition first, then the unconditional.
        positive, middle, negative = (self.conds[name] for name in ("positive", "middle", "negative"))
        whole, image_only, without = comfy.samplers.calc_cond_batch(
            self.inner_model, [positive, middle, negative], x, timestep, options
        )
        return without + (image_only - without) * self.img_cfg + (whole - image_only) * self.cfg

    def _as_one_pair(self, x: Tensor, timestep: Tensor) -> tuple[Conds, Conds, float]:
        """(uncond, cond, scale) equivalent to the three branches, for patches, which take one pair.

        Two scales can be written as one, with r = (img_cfg - 1) / (txt_cfg - 1):

            u = r uncond + (1 - r) image_only
            v = u + txt_cfg (cond - u)

        Core weights the entries of a condition by their masks, so u can be written as a condition. If txt_cfg is 1 or
        0, the image's scale is used instead, and the mixture is on the other side.
        """
        txt, img = self.cfg, self.img_cfg
        positive, middle, negative = (self.conds[name] for name in ("positive", "middle", "negative"))
        if txt != 0.0 and not math.isclose(txt, 1.0, abs_tol=SINGULAR):
            share = (img - 1.0) / (txt - 1.0)
            return mixed([(negative, share), (middle, 1.0 - share)], x, timestep), positive, txt
        scale = img or 1.0
        parts = [(positive, txt / scale), (middle, (img - txt) / scale), (negative, 1.0 - img / scale)]
        return negative, mixed(parts, x, timestep), scale

    def _guides_at(self, timestep: Tensor) -> bool:
        if self.interval == (0.0, 1.0):
            return True
        first, last = (self.inner_model.model_sampling.percent_to_sigma(share) for share in self.interval)
        if self.interval[0] == 0.0:
            first = math.inf  # samplers that add noise start above the schedule
        return last + EPSILON < timestep[0].item() <= first + EPSILON


def mixed(parts: Sequence[tuple[Conds, float]], x: Tensor, timestep: Tensor) -> Conds:
    """A processed condition whose prediction is the sum of the predictions of `parts`, weighted by their shares.

    The shares add up to 1. Areas, masks, strengths and timestep ranges act within each part.
    """
    return [entry for conds, share in parts if share != 0.0 for entry in _weighted(conds, share, x, timestep)]


def _weighted(conds: Conds, share: float, x: Tensor, timestep: Tensor) -> Conds:
    total, weights = torch.zeros_like(x), []
    for entry in sorted(conds, key=lambda entry: "default" in entry):
        place = comfy.samplers.get_area_and_mult(entry, x, timestep)
        if place is None:  # not in its timestep range
            continue
        weight = torch.zeros_like(x)
        _inside(weight, place.area).copy_(place.mult)
        if "default" in entry:  # acts in the area outside the others
            weight = (1.0 - total).relu()
        weights.append((entry, weight))
        total = total + weight
    total = total.where(total != 0, 1.0)
    return [
        {name: value for name, value in entry.items() if name != "default"}
        | {"mask": (share * weight / total)[:, 0], "mask_strength": 1.0, "strength": 1.0}
        for entry, weight in weights
    ]


def _inside(x: Tensor, area: Sequence[int] | None) -> Tensor:
    """The part of x (B, C, H, W) inside one of core's areas (height, width, y, x)."""
    for i in range(len(area or ()) // 2):
        x = x.narrow(i + 2, area[i + len(area) // 2], area[i])
    return x
