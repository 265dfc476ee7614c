"""Names of Ovis-U1's layers in LoRA files, in addition to those that ComfyUI has for every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import comfy.lora

from ..weights.layout import DECODER
from ..weights.quantized import WEIGHT
from .model import OvisU1
from .text_model import OvisTextModel

Keys = Callable[..., dict[str, Any]]


def register() -> None:
    """Wraps the functions that make ComfyUI's tables of names; ComfyUI has no other way to add to them."""
    comfy.lora.model_lora_keys_unet = _with(comfy.lora.model_lora_keys_unet, OvisU1, "diffusion_model.", decoder_names)
    comfy.lora.model_lora_keys_clip = _with(comfy.lora.model_lora_keys_clip, OvisTextModel, "", text_names)


def decoder_names(layer: str) -> Iterator[str]:
    """Names of a decoder layer, such as double_blocks.0.img_attn.qkv, in files of diffusers, PEFT, OneTrainer and
    SimpleTuner.
    """
    yield f"transformer.{layer}"
    yield f"base_model.model.{layer}"
    yield f"{DECODER}{layer}"
    yield f"base_model.model.{DECODER}{layer}"
    yield f"lora_transformer_{_flat(layer)}"
    yield f"lycoris_{_flat(layer)}"


def text_names(layer: str) -> Iterator[str]:
    """Names of a text encoder layer, such as llm.model.layers.0.self_attn.q_proj, including kohya's."""
    yield layer
    yield f"base_model.model.{layer}"
    for called in {layer, layer.removeprefix("llm.")}:
        yield f"text_encoder.{called}"
        yield f"lora_te_{_flat(called)}"
        yield f"lora_te1_{_flat(called)}"


def _flat(layer: str) -> str:
    return layer.replace(".", "_")


def _with(keys: Keys, kind: type, prefix: str, names: Callable[[str], Iterator[str]]) -> Keys:
    @wraps(keys)
    def more(model: Any, key_map: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006 (as ComfyUI declares it)
        found = keys(model, key_map)
        if isinstance(model, kind):
            for key in model.state_dict():
                if key.startswith(prefix) and key.endswith(WEIGHT):
                    layer = key.removeprefix(prefix).removesuffix(WEIGHT)
                    for name in names(layer):
                        found.setdefault(name, key)
        return found

    return more
