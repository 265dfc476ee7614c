"""The text encoder as a ComfyUI CLIP with its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
import torch
from comfy import model_management
from comfy.cli_args import args as cli_args

from ..weights.config import OvisConfig
from ..weights.lazy_tensors import Stored, scaled_layers
from ..weights.metadata import carried
from ..weights.precision import DEFAULT, Precision, in_precision
from .comfy_layers import keep_patchable
from .compat import new_clip
from .filling import castable, for_device, scaled_operations
from .text_model import OvisTextModel
from .tokens import OvisTokenizer

DTYPE_FLAGS = ("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc", "bf16_text_enc", "fp32_text_enc")


def build_clip(
    config: OvisConfig,
    weights: Mapping[str, Stored],
    tokenizer: Path | Mapping[str, bytes] | None,
    precision: Precision = DEFAULT,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """CLIP from the release's weights (names with their prefixes).

    tokenizer        the model's own files, or their folder; None: ComfyUI's Qwen2.5 files, whose vocabulary is the same
    disable_dynamic  no dynamic VRAM, if ComfyUI has it
    """
    load_device = model_management.text_encoder_device()
    precision = for_device(precision, weights, load_device)
    weights = in_precision(weights, precision)
    stored = weights["llm.model.embed_tokens.weight"].dtype
    dtype, compute_dtype = choose_dtypes(stored, load_device, precision)
    options: dict[str, Any] = {"dtype": dtype}
    parameters = sum(stored.meta.nelement() for stored in weights.values())
    if scaled_layers(weights):
        # The language model's activations have outliers that 8 bits cannot represent.
        options["custom_operations"], weights = scaled_operations(weights, dtype, load_device, fast=False)
    target = comfy.supported_models_base.ClipTarget(OvisTokenizer, OvisTextModel)
    target.params = {
        "config": config,
        "compute_dtype": compute_dtype,
        "load_device": load_device,
        "precision": precision,
    }
    arguments: dict[str, Any] = {
        "tokenizer_data": {
            "positions": config.language.max_position_embeddings,
            "source": tokenizer,
            "metadata": carried(tokenizer, language=config.language, vision=config.vision),
        },
        "parameters": parameters,
        "model_options": options,
    }
    clip = new_clip(target, weights, disable_dynamic, **arguments)
    # These layers cast their own weights, so ComfyUI must not force it. It may have loaded them already.
    clip.patcher.force_cast_weights = False
    keep_patchable(clip.patcher)
    return clip


def choose_dtypes(
    stored: torch.dtype, device: torch.device, precision: Precision = DEFAULT
) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of the arithmetic) for a text encoder on `device`.

    Weights stay as they are stored unless the precision or a command line flag asks for another type, or float32
    weights meet a device that computes bfloat16. Qwen3's activations overflow float16, so the arithmetic is never that.
    """
    compute = torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32
    if precision.every is not None:
        return precision.every, torch.float32 if precision.every == torch.float32 else compute
    if any(getattr(cli_args, flag) for flag in DTYPE_FLAGS):
        chosen = model_management.text_encoder_dtype(device)
        if castable(chosen, device):
            return chosen, compute
        logging.warning(
            "Ovis-U1: the text encoder type %s from the command line does not work on this device (%s) and is ignored.",
            chosen,
            device.type,
        )
    if stored == torch.float32:
        return compute, compute
    return stored, compute
