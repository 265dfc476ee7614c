"""A release folder -> MODEL, CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .. import layout
from ..checkpoint import Checkpoint, open_release
from .clip import build_clip
from .model import build_model
from .precision import DEFAULT, Precision
from .vae import build_vae

MODEL, CLIP, VAE = (layout.DECODER,), (layout.LANGUAGE, layout.VISION, layout.TABLE), (layout.VAE,)


def load_release(folder: Path, precision: Precision = DEFAULT) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Everything of a release folder, in the patchers of the running ComfyUI.

    Raises `CheckpointError` before any weight is read when something of it is missing or misshapen.
    """
    checkpoint = open_release(folder)
    clip = _clip(checkpoint, precision=precision)
    model = _model(checkpoint, precision=precision)
    vae = _vae(checkpoint)
    # With these ComfyUI makes fresh copies, for a second GPU or where a node needs weights that stay put.
    model.cached_patcher_init = (load_patcher, (folder, MODEL, precision))
    clip.patcher.cached_patcher_init = (load_patcher, (folder, CLIP, precision))
    vae.patcher.cached_patcher_init = (load_patcher, (folder, VAE, precision))
    return model, clip, vae


def load_patcher(
    folder: Path, part: tuple[str, ...], precision: Precision = DEFAULT, disable_dynamic: bool = False
) -> ModelPatcher:
    """The patcher of one part (MODEL, CLIP or VAE), read anew.

    disable_dynamic  no dynamic VRAM, where ComfyUI has it
    """
    checkpoint = open_release(folder)
    if part == MODEL:
        return _model(checkpoint, precision=precision, disable_dynamic=disable_dynamic)
    if part == CLIP:
        return _clip(checkpoint, precision=precision, disable_dynamic=disable_dynamic).patcher
    return _vae(checkpoint).patcher


def _model(checkpoint: Checkpoint, **options: Any) -> ModelPatcher:
    weights = {name.removeprefix(layout.DECODER): tensor for name, tensor in _weights(checkpoint, MODEL).items()}
    return build_model(checkpoint.config.decoder, weights, **options)


def _clip(checkpoint: Checkpoint, **options: Any) -> comfy.sd.CLIP:
    return build_clip(checkpoint.config, _weights(checkpoint, CLIP), checkpoint.tokenizer, **options)


def _vae(checkpoint: Checkpoint) -> comfy.sd.VAE:
    weights = {name.removeprefix(layout.VAE): tensor for name, tensor in _weights(checkpoint, VAE).items()}
    return build_vae(checkpoint.config.vae, weights)


def _weights(checkpoint: Checkpoint, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The release's tensors of one part; others in its files, such as a tied output head, are left there."""
    wanted = {name for name, _ in layout.tensor_shapes(checkpoint.config) if name.startswith(prefixes)}
    weights: dict[str, Tensor] = {}
    for file in checkpoint.files_with(wanted):
        tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
        weights.update({name: tensor for name, tensor in tensors.items() if name in wanted})
    return weights
