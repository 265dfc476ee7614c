"""Which layers ComfyUI has loaded completely, and patches of those that it has not."""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import nn


def keep_patchable(patcher: ModelPatcher) -> None:
    """Lets a partial load after a full one patch every layer, for this patcher and its clones.

    A patcher whose compute dtype was set (`force_cast_weights`) sets `prev_comfy_cast_weights` also for layers that it
    loads completely, as if it had left them in RAM. They keep it after unloading, and the next partial load skips
    them and their patches.
    """
    patcher.add_callback(CallbacksMP.ON_LOAD, _forget_offloading)
    _forget_offloading(patcher)


def loaded_whole(layer: nn.Module) -> bool:
    """Whether ComfyUI has loaded a layer completely, and not left its weights in RAM."""
    return getattr(layer, "comfy_patched_weights", False)


def _forget_offloading(patcher: ModelPatcher, *loading: Any) -> None:
    for layer in patcher.model.modules():
        if not loaded_whole(layer):
            continue
        if hasattr(layer, "prev_comfy_cast_weights"):
            layer.__dict__.setdefault("ovis_u1_casts", layer.prev_comfy_cast_weights)
            del layer.prev_comfy_cast_weights
        elif hasattr(layer, "ovis_u1_casts"):
            # The layer's state without the compute dtype.
            layer.comfy_cast_weights = layer.__dict__.pop("ovis_u1_casts")
