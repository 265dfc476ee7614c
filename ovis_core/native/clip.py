"""The text encoder as a ComfyUI CLIP with its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.supported_models_base
from comfy import model_management
from comfy.model_patcher import ModelPatcher

from ..multimodal import Token
from ..pixels import VisualInput
from ..weights.config import OvisConfig
from ..weights.metadata import metadata
from .compat import is_dynamic, new_clip
from .layers.network_weights import NetworkWeights
from .layers.partial_loading import keep_patchable, loaded_whole
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
        "fp8_layers": weights.fp8_layers,
    }
    options = weights.options
    chosen = {
        "dtype": dtypes.weights,
        "custom_operations": weights.operations,
        "load_device": options.load_device,
        "offload_device": options.offload_device,
        "initial_device": options.initial_device,
    }
    arguments: dict[str, Any] = {
        "tokenizer_data": {
            "positions": config.language.max_position_embeddings,
            "source": tokenizer,
            "metadata": metadata(tokenizer, language=config.language, vision=config.vision),
        },
        "parameters": sum(tensor.meta.nelement() for tensor in weights.tensors.values()),
        "model_options": {name: value for name, value in chosen.items() if value is not None},
    }
    clip = new_clip(target, weights.tensors, disable_dynamic, **arguments)
    clip.tokenizer.side = side
    # These layers cast their own weights, so ComfyUI must not force a cast.
    # If it has loaded some of them by now, `keep_patchable` corrects these.
    clip.patcher.force_cast_weights = False
    keep_patchable(clip.patcher)
    return clip


def load_clip(clip: comfy.sd.CLIP, tokens: Iterable[Token], memory: int) -> None:
    """Loads the weights that `tokens` need, and frees `memory` bytes more.

    Without images the visual tokenizer is not loaded. Dynamic VRAM moves a weight when it is used.
    """
    visual = any(isinstance(token, VisualInput) for token in tokens)
    vision = clip.cond_stage_model.visual_tokenizer
    if visual or is_dynamic(clip.patcher) or any(map(loaded_whole, vision.modules())):
        model_management.load_models_gpu([clip.patcher], memory_required=memory)
        return
    with _without(clip.patcher, "visual_tokenizer"):
        model_management.load_models_gpu([clip.patcher], memory_required=memory)


@contextmanager
def _without(patcher: ModelPatcher, name: str) -> Iterator[None]:
    """Hides a part of a patcher's network from loading. The next load completes the network."""
    model, size = patcher.model, patcher.size
    order = list(model._modules)
    hidden = model._modules.pop(name)
    patcher.size = model_management.module_size(model)
    try:
        yield
    finally:
        model._modules[name] = hidden
        model._modules.update({other: model._modules.pop(other) for other in order})  # back in its place
        patcher.size = size
        model.model_lowvram = True  # as ComfyUI sets it for a model that is not loaded completely
