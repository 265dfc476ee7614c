"""The decoder as a ComfyUI MODEL with its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP

from ..weights.config import DecoderConfig
from ..weights.lazy_tensors import Stored, scaled_layers
from ..weights.precision import DEFAULT, LARGE, Precision, in_precision
from .comfy_layers import keep_patchable, prepare
from .compat import is_dynamic, new_patcher
from .filling import castable, fill, for_device, scaled_operations, wide_dtype
from .model_config import ModelConfig


def build_model(
    config: DecoderConfig,
    weights: Mapping[str, Stored],
    precision: Precision = DEFAULT,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """MODEL from the release's weights of the decoder (names without prefix), made as ComfyUI makes its own.

    disable_dynamic  no dynamic VRAM, if ComfyUI has it
    """
    management = comfy.model_management
    model_config = ModelConfig(config)
    supported = model_config.supported_inference_dtypes
    load_device = management.get_torch_device()
    precision = for_device(precision, weights, load_device)
    weights = in_precision(weights, precision)
    small = {name: stored.meta for name, stored in weights.items() if not LARGE.search(name)}
    dtype = precision.every or management.unet_dtype(
        model_params=sum(stored.meta.nelement() for stored in weights.values()),
        supported_dtypes=list(supported),
        weight_dtype=comfy.utils.weight_dtype(small),
    )
    if not castable(dtype, load_device):
        wide = wide_dtype(load_device)
        logging.warning(
            "Ovis-U1: weights of type %s cannot be used on this device (%s); they are loaded as %s.",
            dtype,
            load_device.type,
            wide,
        )
        dtype = wide
    # On a GPU ComfyUI would compute in the type of float16 weights.
    stand_in = dtype if dtype in supported else torch.bfloat16
    cast = management.unet_manual_cast(stand_in, load_device, supported)
    model_config.set_inference_dtype(dtype, cast if stand_in is dtype else cast or stand_in)
    model_config.optimizations["fp8"] = precision.fast
    if scaled_layers(weights):
        model_config.custom_operations, weights = scaled_operations(weights, dtype, load_device, precision.fast)
    model = model_config.get_model({})
    prepare(model.diffusion_model, precision)

    patcher = new_patcher(model, weights, load_device, management.unet_offload_device(), disable_dynamic)
    patcher.add_callback(CallbacksMP.ON_CLEANUP, _after_sampling)
    keep_patchable(patcher)
    if not management.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    fill(model.diffusion_model, model_config.process_unet_state_dict(weights), assign=is_dynamic(patcher))
    return patcher


def _after_sampling(patcher: ModelPatcher) -> None:
    patcher.model.patch_checks.reset()
    patcher.model.diffusion_model.rotary_tables.clear()
