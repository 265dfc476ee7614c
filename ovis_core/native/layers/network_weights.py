"""A component's tensors in types that this machine supports, and the ComfyUI layers for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...weights.components import Kind
from ...weights.layer_formats import WEIGHT
from ...weights.lazy_tensors import FP8, LazyTensor
from ...weights.precision import DEFAULT, LARGE, Precision, dequantize_other_layers, in_precision
from ...weights.quantization import plain_tensors
from .dtypes import Dtypes, choose_dtypes
from .quantized_operations import quantized_operations


@dataclass(frozen=True)
class LoadOptions:
    """Devices and layers for a component, by their names in ComfyUI's `model_options`. ComfyUI chooses for None.

    load_device        the component runs on it
    offload_device     its weights are there while it does not run
    initial_device     its weights are loaded to it; only for a text encoder
    custom_operations  namespace of layers, derived from one of ComfyUI's
    """

    load_device: torch.device | None = None
    offload_device: torch.device | None = None
    initial_device: torch.device | None = None
    custom_operations: Any = None


CHOSEN_BY_COMFYUI = LoadOptions()


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of a network, and the layers to build it from.

    tensors     by the release's names, without the component's prefix
    operations  ComfyUI's namespace of layers; None: ComfyUI chooses it for `dtypes`
    fp8_layers  layers whose weights are in 8 bits, but not of a format that `operations` loads
    """

    tensors: Mapping[str, LazyTensor]
    dtypes: Dtypes
    operations: Any = None
    options: LoadOptions = CHOSEN_BY_COMFYUI
    fp8_layers: frozenset[str] = frozenset()


def prepare_weights(
    kind: Kind,
    tensors: Mapping[str, LazyTensor],
    precision: Precision = DEFAULT,
    options: LoadOptions = CHOSEN_BY_COMFYUI,
) -> NetworkWeights:
    """Weights of the decoder or the text encoder for this machine, from a component's tensors without prefix.

    Raises ValueError for a precision that the device does not support, and for layers that cannot hold the weights;
    `CheckpointError` for quantized layers that this ComfyUI does not have.
    """
    tensors = dequantize_other_layers(tensors)
    dtypes = choose_dtypes(kind, tensors, precision, options.load_device)
    operations, named = quantized_operations(in_precision(tensors, dtypes.precision), dtypes)
    if options.custom_operations is not None:
        if operations is not None:
            raise ValueError("custom_operations: quantized weights need ComfyUI's own layers; choose a file in bf16.")
        operations = options.custom_operations
    # The older layers of 0.3.75 load quantized weights like plain ones; newer ones make them from quant configs.
    plain = plain_tensors(named)
    fp8_layers = {n.removesuffix(WEIGHT) for n, tensor in plain.items() if tensor.dtype == FP8 and LARGE.search(n)}
    return NetworkWeights(named, dtypes, operations, options, frozenset(fp8_layers))
