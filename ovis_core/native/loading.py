"""A checked model's files -> MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher

from ..weights.checkpoint import DECODER, TEXT, Checkpoint, Kind, Part
from ..weights.lazy_tensors import Stored, stored_name, stored_weights
from ..weights.precision import DEFAULT, Precision
from ..weights.safetensors_file import CheckpointError
from .clip import build_clip
from .compat import dynamic_vram
from .model_patcher import build_model
from .vae import build_vae


def load(checkpoint: Checkpoint, precision: Precision = DEFAULT) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Everything of a model, in the patchers of the running ComfyUI.

    Raises `CheckpointError` for NaN or infinity, a dtype that no part has, and a VAE that is not of SDXL's kind.
    """
    vae = _vae(checkpoint)  # its shapes are checked last, and it takes least time
    clip = _clip(checkpoint, precision)
    model = _model(checkpoint, precision)
    # With these ComfyUI makes fresh copies, for a second GPU or where a node needs weights that stay put.
    for patcher, part in ((model, checkpoint.decoder), (clip.patcher, checkpoint.text), (vae.patcher, checkpoint.vae)):
        patcher.cached_patcher_init = (load_patcher, (checkpoint, part.kind, precision))
    return model, clip, vae


def load_patcher(
    checkpoint: Checkpoint, kind: Kind, precision: Precision = DEFAULT, disable_dynamic: bool = False
) -> ModelPatcher:
    """The patcher of one part, read anew.

    disable_dynamic  no dynamic VRAM, where ComfyUI has it

    Raises `CheckpointError` as `load` does.
    """
    if kind == DECODER:
        return _model(checkpoint, precision, disable_dynamic=disable_dynamic)
    if kind == TEXT:
        return _clip(checkpoint, precision, disable_dynamic=disable_dynamic).patcher
    return _vae(checkpoint).patcher


def _model(checkpoint: Checkpoint, precision: Precision, **options: Any) -> ModelPatcher:
    patcher = build_model(checkpoint.config.decoder, _weights(checkpoint.decoder), precision, **options)
    patcher.model.side = checkpoint.side
    return patcher


def _clip(checkpoint: Checkpoint, precision: Precision, **options: Any) -> comfy.sd.CLIP:
    clip = build_clip(checkpoint.config, _weights(checkpoint.text), checkpoint.tokenizer, precision, **options)
    clip.tokenizer.side = checkpoint.side
    return clip


def _vae(checkpoint: Checkpoint) -> comfy.sd.VAE:
    stored_vae = stored_weights(checkpoint.vae, copied=comfy.utils.DISABLE_MMAP)
    weights = {name: stored.read() for name, stored in stored_vae.items()}
    try:
        return build_vae(checkpoint.config.vae, weights)
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        file = next(iter(checkpoint.vae.files.values()))
        wrong = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        raise CheckpointError(
            f"{file}: this VAE is not of SDXL's kind ({wrong.rstrip('.')}); choose another."
        ) from error


def _weights(part: Part) -> dict[str, Stored]:
    """The weights of a part, without prefix, where the running ComfyUI looks for them."""
    # Without a GPU weights stay where they are in the file, and only what a pass takes needs memory.
    on_cpu = comfy.model_management.get_torch_device().type == "cpu"
    weights = stored_weights(part, lasting=on_cpu, copied=comfy.utils.DISABLE_MMAP)
    if dynamic_vram():
        # Dynamic VRAM takes weights from files that it has opened itself.
        files = {file: comfy.utils.load_torch_file(str(file), safe_load=True) for file in set(part.files.values())}
        names = {stored_name(name): (part.prefix + name, file) for name, file in part.files.items()}
        weights = {name: Stored.of(files[file][full], file) for name in weights for full, file in [names[name]]}
    return weights
