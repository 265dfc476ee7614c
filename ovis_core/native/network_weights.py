"""A component's tensors in types that this machine supports, and the ComfyUI layers for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..weights.components import Kind
from ..weights.lazy_tensors import LazyTensor
from ..weights.precision import DEFAULT, Precision, in_precision
from .comfy_layers import quantized_operations
from .dtypes import Dtypes, choose_dtypes


@dataclass(frozen=True)
class NetworkWeights:
    """The weights of a network, and the layers to build it from.

    tensors     by the release's names, without the component's prefix
    operations  ComfyUI's namespace of layers; None: ComfyUI chooses it for `dtypes`
    """

    tensors: Mapping[str, LazyTensor]
    dtypes: Dtypes
    operations: Any = None


def prepare_weights(kind: Kind, tensors: Mapping[str, LazyTensor], precision: Precision = DEFAULT) -> NetworkWeights:
    """Weights of the decoder or the text encoder for this machine, from a component's tensors without prefix.

    Raises ValueError for a precision that the device does not support.
    """
    dtypes = choose_dtypes(kind, tensors, precision)
    operations, tensors = quantized_operations(in_precision(tensors, dtypes.precision), dtypes)
    return NetworkWeights(tensors, dtypes, operations)
