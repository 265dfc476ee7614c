"""A release folder -> MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path

import comfy.model_patcher
import comfy.sd
import comfy.utils
from torch import Tensor

from .. import layout
from ..checkpoint import open_release
from .clip import build_clip
from .model import build_model
from .vae import build_vae


def load_release(folder: Path) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Everything of a release folder, in the patchers of the running ComfyUI.

    Raises `CheckpointError` before any weight is read when something of it is missing or misshapen.
    """
    checkpoint = open_release(folder)
    weights: dict[str, Tensor] = {}
    for file in checkpoint.files:
        weights.update(comfy.utils.load_torch_file(str(file), safe_load=True))
    text = (layout.LANGUAGE, layout.VISION, layout.TABLE)
    names = {name for name, _ in layout.tensor_shapes(checkpoint.config)}
    clip = build_clip(
        checkpoint.config,
        {name: weights[name] for name in names if name.startswith(text)},
        checkpoint.tokenizer,
    )
    model = build_model(checkpoint.config.decoder, _part(weights, layout.DECODER))
    vae = build_vae(checkpoint.config.vae, _part(weights, layout.VAE))
    return model, clip, vae


def _part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weights[name] for name in list(weights) if name.startswith(prefix)}
