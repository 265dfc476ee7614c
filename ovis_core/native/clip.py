"""The text encoder as a ComfyUI CLIP with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base

from ..weights.config import OvisConfig
from ..weights.metadata import metadata
from .comfy_layers import keep_patchable
from .compat import new_clip
from .network_weights import NetworkWeights
from .text_model import OvisTextModel
from .tokens import OvisTokenizer


def build_clip(
    config: OvisConfig,
    weights: NetworkWeights,
    tokenizer: Path | Mapping[str, bytes] | None,
    side: int | None = None,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """CLIP from the text encoder's weights.

    tokenizer        the model's own files, or their folder; None: ComfyUI's Qwen2.5 files, whose vocabulary is the same
    side             as `Checkpoint.side`
    disable_dynamic  no dynamic VRAM, if ComfyUI has it
    """
    dtypes = weights.dtypes
    target = comfy.supported_models_base.ClipTarget(OvisTokenizer, OvisTextModel)
    target.params = {
        "config": config,
        "compute_dtype": dtypes.compute,
        "load_device": dtypes.device,
        "eight_bit": weights.eight_bit,
    }
    options: dict[str, Any] = {"dtype": dtypes.weights}
    if weights.operations is not None:
        options["custom_operations"] = weights.operations
    arguments: dict[str, Any] = {
        "tokenizer_data": {
            "positions": config.language.max_position_embeddings,
            "source": tokenizer,
            "metadata": metadata(tokenizer, language=config.language, vision=config.vision),
        },
        "parameters": sum(tensor.meta.nelement() for tensor in weights.tensors.values()),
        "model_options": options,
    }
    clip = new_clip(target, weights.tensors, disable_dynamic, **arguments)
    clip.tokenizer.side = side
    # These layers cast their own weights, so ComfyUI must not force a cast. It may have loaded them already.
    clip.patcher.force_cast_weights = False
    keep_patchable(clip.patcher)
    return clip
