"""The model's schedule in ComfyUI: the shift for a latent's size, and SIGMAS."""

from __future__ import annotations

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..schedule import shifted_times

SCHEDULER = "ovis_u1"
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
