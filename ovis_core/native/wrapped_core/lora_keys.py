"""Names of Ovis-U1's layers in LoRA files, in addition to those that ComfyUI has for every model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.lora

from ...weights.layer_formats import WEIGHT
from ...weights.layout import DECODER
from ..model import OvisU1
from ..text_model import OvisTextModel
from .wrapping import Core, wrap


def register() -> None:
    """Wraps the functions that make ComfyUI's tables of names."""
    wrap(comfy.lora, "model_lora_keys_unet", KeyTable(OvisU1, "diffusion_model.", decoder_names))
    wrap(comfy.lora, "model_lora_keys_clip", KeyTable(OvisTextModel, "", text_names))


@dataclass(frozen=True)
class KeyTable:
    """A table of names in LoRA files -> weights of a model; more names for the layers of one kind of model.

    kind    class of the models
    prefix  of their layers
    names   layer without prefix -> its names
    """

    kind: type
    prefix: str
    names: Callable[[str], Iterator[str]]

    def __call__(self, core: Core, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The table that core's function makes, with these names."""
        table = core(*args, **kwargs)
        model = args[0] if args else kwargs["model"]
        if isinstance(model, self.kind):
            for key in model.state_dict():
                if key.startswith(self.prefix) and key.endswith(WEIGHT):
                    for name in self.names(key.removeprefix(self.prefix).removesuffix(WEIGHT)):
                        table.setdefault(name, key)
        return table


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
