"""A component's tensors in types that this machine supports, and the ComfyUI layers for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..weights.components import Kind
from ..weights.lazy_tensors import LazyTensor
from ..weights.precision import DEFAULT, LARGE, Precision, in_precision, large_only
from ..weights.quantized import FP8, WEIGHT, unquantized
from .comfy_layers import quantized_operations
from .dtypes import Dtypes, choose_dtypes


@dataclass(frozen=True)
class Placement:
    """Where a component's weights are, and the layers that keep them. ComfyUI chooses for a value that is None.

    device          the component runs on it
    offload_device  its weights are there while it does not run
    initial_device  its weights are loaded to it; only for a text encoder
    operations      namespace of layers, derived from one of ComfyUI's
    """

    device: torch.device | None = None
    offload_device: torch.device | None = None
    initial_device: torch.device | None = None
    operations: Any = None


CHOSEN_BY_COMFYUI = Placement()


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of a network, and the layers to build it from.

    tensors     by the release's names, without the component's prefix
    operations  ComfyUI's namespace of layers; None: ComfyUI chooses it for `dtypes`
    eight_bit   layers whose weights are in 8 bits, but not of a format that `operations` loads
    """

    tensors: Mapping[str, LazyTensor]
    dtypes: Dtypes
    operations: Any = None
    placement: Placement = CHOSEN_BY_COMFYUI
    eight_bit: frozenset[str] = frozenset()


def prepare_weights(
    kind: Kind,
    tensors: Mapping[str, LazyTensor],
    precision: Precision = DEFAULT,
    placement: Placement = CHOSEN_BY_COMFYUI,
) -> NetworkWeights:
    """Weights of the decoder or the text encoder for this machine, from a component's tensors without prefix.

    Raises ValueError for a precision that the device does not support, and for layers that cannot hold the weights;
    `CheckpointError` for quantized layers that this ComfyUI does not have.
    """
    tensors = large_only(tensors)
    dtypes = choose_dtypes(kind, tensors, precision, placement.device)
    operations, named = quantized_operations(in_precision(tensors, dtypes.precision), dtypes)
    if placement.operations is not None:
        if operations is not None:
            raise ValueError(
                "custom_operations: the weights are quantized, which needs ComfyUI's own layers; choose a file in bf16."
            )
        operations = placement.operations
    # The older layers of 0.3.75 load quantized weights like plain ones; newer ones make them from marks.
    plain = unquantized(named)
    eight_bit = {n.removesuffix(WEIGHT) for n, tensor in plain.items() if tensor.dtype == FP8 and LARGE.search(n)}
    return NetworkWeights(named, dtypes, operations, placement, frozenset(eight_bit))
