"""One run of ComfyUI's sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

from .compat import RATIOS, fix_empty_latent
from .guider import OvisGuider
from .sigmas import sigmas_for


def empty_latent(patcher: ModelPatcher, latent: dict[str, Any]) -> dict[str, Any]:
    """The LATENT; another model's empty one gets this model's channels and scale, as in core's samplers."""
    samples = fix_empty_latent(patcher, latent)
    return {name: value for name, value in latent.items() if name not in RATIOS} | {"samples": samples}


def sample(
    guider: OvisGuider, latent: dict[str, Any], seed: int, sampler_name: str, scheduler: str, steps: int, denoise: float
) -> dict[str, Any]:
    """Samples with ComfyUI's own sampler node, with its noise, progress, preview and interrupt; returns the LATENT."""
    sigmas = sigmas_for(guider.model_patcher, latent["samples"], steps, denoise, scheduler, sampler_name)
    sampler = comfy.samplers.sampler_object(sampler_name)
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(seed), guider, sampler, sigmas, latent)[0]
