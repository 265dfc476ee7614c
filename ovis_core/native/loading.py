"""A checked model's files -> MODEL, CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.sd
import comfy.utils
from comfy.model_management import get_torch_device
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..weights.checkpoint import Checkpoint
from ..weights.components import DECODER, TEXT, VAE, Component, Kind
from ..weights.lazy_tensors import TensorReader, lazy_tensors
from ..weights.precision import DEFAULT, Precision
from ..weights.safetensors_file import TensorEntry
from .clip import build_clip
from .compat import dynamic_vram
from .layers.network_weights import CHOSEN_BY_COMFYUI, LoadOptions, prepare_weights
from .model_patcher import build_model
from .vae import build_vae


def load(checkpoint: Checkpoint, precision: Precision = DEFAULT) -> tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Loads a model into patchers of the running ComfyUI.

    Raises `CheckpointError` for a dtype that Ovis-U1 does not use, and for a VAE that is not an SDXL VAE; ValueError
    for a precision that the device does not support.
    """
    # First the VAE: its shapes are checked when it is built, and it takes the least time.
    vae, clip, model = (load_component(checkpoint, kind, precision) for kind in (VAE, TEXT, DECODER))
    # With these ComfyUI makes new copies, for a second GPU or for a node whose weights must stay at one address.
    for patcher, kind in ((model, DECODER), (clip.patcher, TEXT), (vae.patcher, VAE)):
        patcher.cached_patcher_init = (load_patcher, (checkpoint, kind, precision))
    return model, clip, vae


def load_patcher(
    checkpoint: Checkpoint, kind: Kind, precision: Precision = DEFAULT, disable_dynamic: bool = False
) -> ModelPatcher:
    """The patcher of one component, loaded again by `load_component`."""
    loaded = load_component(checkpoint, kind, precision, disable_dynamic)
    return loaded if kind == DECODER else loaded.patcher


def load_component(
    checkpoint: Checkpoint,
    kind: Kind,
    precision: Precision = DEFAULT,
    disable_dynamic: bool = False,
    options: LoadOptions = CHOSEN_BY_COMFYUI,
    state_dict: Mapping[str, Tensor] | None = None,
) -> Any:
    """MODEL for the decoder, CLIP for the text encoder, or VAE. Raises as `load` does.

    disable_dynamic  no dynamic VRAM, if ComfyUI has it
    state_dict       the tensors that the checkpoint's entries name; None: they are read from their files
    """
    component = checkpoint.components[kind]
    read, persistent = _reader(component, state_dict)
    tensors = lazy_tensors(component.entries, read, persistent)
    if kind == VAE:
        return build_vae(checkpoint.config.vae, tensors, options.load_device)
    weights = prepare_weights(kind, tensors, precision, options)
    if kind == DECODER:
        return build_model(checkpoint.config.decoder, weights, checkpoint.side, disable_dynamic)
    return build_clip(checkpoint.config, weights, checkpoint.tokenizer, checkpoint.side, disable_dynamic)


def _reader(
    component: Component, state_dict: Mapping[str, Tensor] | None
) -> tuple[Callable[[TensorEntry], Tensor], bool]:
    """A function that reads a component's tensors, and whether layers may use these as their weights."""
    # Without a GPU weights stay in their files, and only the parts that a pass reads need memory.
    persistent = component.kind != VAE and get_torch_device().type == "cpu" and not dynamic_vram()
    if state_dict is not None:
        return lambda entry: state_dict[entry.name].detach(), persistent
    if component.kind != VAE and dynamic_vram():
        # Dynamic VRAM takes weights from files that it has opened itself.
        paths = {entry.file for entry in component.entries.values()}
        files = {file: comfy.utils.load_torch_file(str(file), safe_load=True) for file in paths}
        return lambda entry: files[entry.file][entry.name], persistent
    return TensorReader(persistent, copied=comfy.utils.DISABLE_MMAP), persistent
