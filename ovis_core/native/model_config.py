"""The decoder's config for ComfyUI's model management: latent format, dtypes, memory factor, names of weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import comfy.latent_formats
import comfy.supported_models_base
from torch import Tensor

from ..weights.components import TEXT
from ..weights.config import DecoderConfig
from ..weights.metadata import metadata
from .layers.dtypes import DECODER_DTYPES
from .model import OvisU1

T = TypeVar("T")

# ComfyUI counts a pass's memory as latent pixels * bytes of the dtype * factor * 0.01 MiB. At hidden size 1536 the live
# tensors of a pass come to 0.56 of that in bfloat16 and 0.48 in float32; the rest is for the allocator.
MEMORY_FACTOR = 0.59

# Suffixes of the QK norms' weights: in the release, and in ComfyUI's layers.
NORM_SCALE, NORM_WEIGHT = "_norm.scale", "_norm.weight"


class ModelConfig(comfy.supported_models_base.BASE):
    """The decoder's config, as a config of ComfyUI."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SDXL
    supported_inference_dtypes = list(DECODER_DTYPES)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__({"image_model": "ovis_u1", **dataclasses.asdict(config)})
        self.decoder = config
        self.text_encoder_key_prefix = [TEXT.comfy_prefix]
        self.sampling_settings = {"shift": config.max_shift}
        self.memory_usage_factor = MEMORY_FACTOR * config.hidden_size / 1536

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> OvisU1:
        """The module, without weights."""
        return OvisU1(self, device=device)

    def process_unet_state_dict(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """Release's names -> module's."""
        return {name.replace(NORM_SCALE, NORM_WEIGHT): value for name, value in state_dict.items()}

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Module's names -> release's, under ComfyUI's prefix."""
        renamed = {name.replace(NORM_WEIGHT, NORM_SCALE): value for name, value in state_dict.items()}
        return super().process_unet_state_dict_for_saving(renamed | metadata(decoder=self.decoder))
