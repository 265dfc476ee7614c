"""Sampling with ComfyUI's sampler: the shift and the SIGMAS for a latent's size, and one run."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from torch import Tensor

from ..schedule import SCHEDULER, shifted_times
from .compat import RATIOS, fix_empty_latent

MODEL_SAMPLING = "model_sampling"


class ModelSampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
    """The flow with the shift for one image size."""


def with_shift(patcher: ModelPatcher, latent: Tensor) -> ModelPatcher:
    """A clone with the shift for this latent's size; the same patcher if it has a shift already."""
    if MODEL_SAMPLING in patcher.object_patches:
        return patcher
    sampling = ModelSampling(patcher.model.model_config)
    sampling.set_parameters(shift=patcher.model.shift(latent))
    clone = patcher.clone()
    clone.add_object_patch(MODEL_SAMPLING, sampling)
    return clone


def sigmas_for(
    patcher: ModelPatcher,
    latent: Tensor,
    steps: int,
    denoise: float,
    scheduler: str = SCHEDULER,
    sampler_name: str = "",
) -> Tensor:
    """SIGMAS (steps + 1,) of the model's own schedule, or of one of ComfyUI's, for this latent's size.

    Like KSampler, this drops the last sigma but one of ComfyUI's schedules for some samplers.
    """
    if scheduler == SCHEDULER:
        return torch.tensor(shifted_times(steps, patcher.model.shift(latent), denoise))
    if denoise <= 0.0:
        return torch.tensor([])
    total = steps if denoise >= 1.0 else int(steps / denoise)
    sampling = with_shift(patcher, latent).get_model_object(MODEL_SAMPLING)
    if sampler_name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total + 1)
        sigmas = torch.cat((sigmas[:-2], sigmas[-1:]))
    else:
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, total)
    return sigmas.cpu()[-(steps + 1) :]


def empty_latent(patcher: ModelPatcher, latent: dict[str, Any]) -> dict[str, Any]:
    """The LATENT; another model's empty one gets this model's channels and scale, as in core's samplers."""
    samples = fix_empty_latent(patcher, latent)
    return {name: value for name, value in latent.items() if name not in RATIOS} | {"samples": samples}


def sample(
    guider: comfy.samplers.CFGGuider,
    latent: dict[str, Any],
    seed: int,
    sampler_name: str,
    scheduler: str,
    steps: int,
    denoise: float,
) -> dict[str, Any]:
    """Samples with ComfyUI's own sampler node, with its noise, progress, preview and interrupt; returns the LATENT."""
    sigmas = sigmas_for(guider.model_patcher, latent["samples"], steps, denoise, scheduler, sampler_name)
    sampler = comfy.samplers.sampler_object(sampler_name)
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(seed), guider, sampler, sigmas, latent)[0]
