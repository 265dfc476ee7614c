"""Layers whose weights are stored in fewer bits: their tensors in a file, and the arithmetic.

The tensors have the names of newer ComfyUIs: the layer's name and a suffix. A layer's mark is JSON that names its
format. One format is supported: float8_e4m3fn, with one scale for the whole matrix.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .lazy_tensors import LazyTensor, saturated
from .safetensors_file import CheckpointError, TensorEntry

WEIGHT = ".weight"
SCALE = ".weight_scale"  # factor for the stored weight
OLDER_SCALE = ".scale_weight"  # the same in older files and ComfyUIs
MARK = ".comfy_quant"
FORMAT = "float8_e4m3fn"
FP8 = torch.float8_e4m3fn
FP8_IN_FILES = "F8_E4M3"


def scale_entries(
    entries: Mapping[str, TensorEntry], layers: Iterable[str], source: object
) -> Mapping[str, TensorEntry]:
    """The scales of these layers, by their newer names.

    source  the path of the entries, for messages

    Raises `CheckpointError` if a layer has more than one scale.
    """
    found = {}
    for layer in layers:
        for entry in (entries.get(layer + SCALE), entries.get(layer + OLDER_SCALE)):
            if entry is None:
                continue
            if entry.shape not in ((), (1,)):
                raise CheckpointError(
                    f"{source}: tensor {entry.name}: expected one scale for a whole matrix, got shape "
                    f"{list(entry.shape)}; choose a file in bf16, which scripts/convert.py can convert to fp8."
                )
            # Older ComfyUIs also write a scale of 1 for layers that are not quantized.
            if entries[layer + WEIGHT].dtype == FP8_IN_FILES:
                found[layer + SCALE] = entry
    return found


def dequantized(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """These tensors with plain matrices, in float32, in place of quantized ones."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((SCALE, MARK))}
    for layer in _layers(tensors):
        weight, scale = tensors[layer + WEIGHT], tensors[layer + SCALE]

        def read(weight: LazyTensor = weight, scale: LazyTensor = scale) -> Tensor:
            return weight.read().float() * scale.read()

        found[layer + WEIGHT] = replace(weight, dtype=torch.float32, read=read)
    return found


def quantized(name: str, weight: LazyTensor) -> dict[str, LazyTensor]:
    """The tensors that a file stores for a matrix in 8 bits: the matrix divided by its scale, and the scale."""
    scale = LazyTensor((), torch.float32, lambda: _scale(weight.read()))

    def read() -> Tensor:
        matrix = weight.read()
        matrix = matrix.float() / _scale(matrix)
        return saturated(matrix, FP8)

    return {name: replace(weight, dtype=FP8, read=read), name.removesuffix(WEIGHT) + SCALE: scale}


def _scale(matrix: Tensor) -> Tensor:
    """The divisor that maps a matrix's largest value to the format's largest value."""
    largest = matrix.abs().max().float()
    return torch.where(largest > 0, largest / torch.finfo(FP8).max, 1.0)


def marked(tensors: Mapping[str, LazyTensor], multiply: bool = False) -> dict[str, LazyTensor]:
    """These tensors, and a mark for each quantized layer.

    multiply  in 8 bits too, on a GPU that can
    """
    mark = {"format": FORMAT} | ({} if multiply else {"full_precision_matrix_mult": True})
    data = torch.frombuffer(bytearray(json.dumps(mark).encode()), dtype=torch.uint8)
    return {**tensors, **{layer + MARK: LazyTensor.of(data) for layer in _layers(tensors)}}


def _layers(names: Iterable[str]) -> list[str]:
    return [name.removesuffix(SCALE) for name in names if name.endswith(SCALE)]
