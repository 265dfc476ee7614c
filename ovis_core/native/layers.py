"""ComfyUI's layers for the networks, and their weights where they are needed by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ops
import torch
from comfy.ldm.flux.math import attention
from torch import Tensor, nn

from ..networks.layers import Layers
from ..precision import LARGE, Precision


def comfy_layers(operations: Any, dtype: torch.dtype | None, device: Any) -> Layers:
    """`Layers` of one of ComfyUI's `operations`."""
    return Layers(operations, attention, borrowed, dtype, device)


@contextmanager
def borrowed(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """A layer's weight on the device and in the dtype of `like`, with its patches.

    One at a time: ComfyUI may bring the next one to the same place.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        yield weight
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


@contextmanager
def holding(network: nn.Module, like: Tensor) -> Iterator[bool]:
    """Whether all weights of `network` are where `like` is, as it is, and stay there until the context ends.

    With dynamic VRAM a borrowed weight is pinned. False for weights that are offloaded, cast or patched at each use.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, comfy.ops.CastWeightBiasOp)]
    with ExitStack() as held:
        whole = all(_stays(layer, held.enter_context(borrowed(layer, like))) for layer in layers)
        if not whole:
            held.close()
        yield whole


def _stays(layer: nn.Module, weight: Tensor) -> bool:
    # Dynamic VRAM keeps a resident weight beside the layer's own.
    places = (layer.weight, getattr(layer, "_v_weight", None))
    return any(place is not None and place.data_ptr() == weight.data_ptr() for place in places)


def prepare(network: nn.Module, precision: Precision) -> None:
    """Makes a network's large layers ready for weights of their own dtype, which they cast at each use."""
    if precision.large is None:
        return
    for name, layer in network.named_modules():
        if not LARGE.search(f"{name}.weight") or not isinstance(layer, nn.Linear):
            continue
        layer.comfy_cast_weights = True
        # With dynamic VRAM there is no weight yet.
        if layer.weight is not None:
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=precision.large), requires_grad=False)
