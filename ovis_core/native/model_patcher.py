"""The decoder as a ComfyUI MODEL with its weights."""

from __future__ import annotations

from comfy import model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP

from ..weights.config import DecoderConfig
from .compat import is_dynamic, new_patcher
from .layers.filling import fill
from .layers.network_weights import NetworkWeights
from .layers.partial_loading import keep_patchable
from .layers.quantized_operations import make_fp8_layers
from .model_config import ModelConfig


def build_model(
    config: DecoderConfig, weights: NetworkWeights, side: int | None = None, disable_dynamic: bool = False
) -> ModelPatcher:
    """MODEL from the decoder's weights, built like ComfyUI's own.

    side             as `Checkpoint.side`
    disable_dynamic  no dynamic VRAM, if ComfyUI has it
    """
    dtypes = weights.dtypes
    model_config = ModelConfig(config)
    model_config.set_inference_dtype(dtypes.weights, dtypes.compute)
    model_config.optimizations["fp8"] = dtypes.precision.fast
    model_config.custom_operations = weights.operations
    tensors = model_config.process_unet_state_dict(weights.tensors)
    model = model_config.get_model({})
    model.side = side
    make_fp8_layers(model.diffusion_model, weights.fp8_layers)

    offload_device = weights.options.offload_device or model_management.unet_offload_device()
    patcher = new_patcher(model, tensors, dtypes.device, offload_device, disable_dynamic)
    patcher.add_callback(CallbacksMP.ON_CLEANUP, _after_sampling)
    keep_patchable(patcher)
    if not model_management.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    fill(model.diffusion_model, tensors, assign=is_dynamic(patcher))
    return patcher


def _after_sampling(patcher: ModelPatcher) -> None:
    patcher.model.patch_checks.reset()
    patcher.model.diffusion_model.rotary_tables.clear()
