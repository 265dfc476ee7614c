"""How weights are kept: the choices of ComfyUI's own loaders, for the decoder and the language model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checkpoint import WEIGHT
from .lazy_tensors import SCALE, Stored, is_finite
from .safetensors_file import CheckpointError

# The large matrices, 97 % of the decoder and 82 % of the language model. Everything else keeps its
# precision: norms, embeddings, biases, the refiner's gates, what reads latents, time and text, and the final layer.
LARGE = re.compile(
    r"(double_blocks|single_blocks)\.\d+\..*\.weight$"
    r"|individual_token_refiner\.blocks\.\d+\.(self_attn_qkv|self_attn_proj|mlp\.fc\d)\.weight$"
    r"|^llm\.model\.layers\.\d+\..*_proj\.weight$"
)


@dataclass(frozen=True)
class Precision:
    """How weights are kept.

    every   dtype of all weights; None: as they are stored, or as the device computes best
    large   dtype of the large matrices; None: as the others
    fast    multiply in `large` too, on a GPU that can
    scaled  the large matrices divided by a scale each, so that their range is that of `large`
    """

    every: torch.dtype | None = None
    large: torch.dtype | None = None
    fast: bool = False
    scaled: bool = False


PRECISIONS = {
    "default": Precision(),
    "bf16": Precision(every=torch.bfloat16),
    "fp16": Precision(every=torch.float16),
    "fp32": Precision(every=torch.float32),
    "fp8_e4m3fn": Precision(large=torch.float8_e4m3fn),
    "fp8_e4m3fn_fast": Precision(large=torch.float8_e4m3fn, fast=True),
}
DEFAULT = PRECISIONS["default"]
SCALED = {"fp8_scaled": Precision(large=torch.float8_e4m3fn, scaled=True)}  # for files


def as_stored(precision: Precision, weights: Mapping[str, Stored]) -> Precision:
    """The precision for these weights: large matrices that are stored in 8 bits stay so by default."""
    if precision == DEFAULT and any(stored.dtype == torch.float8_e4m3fn for stored in weights.values()):
        return PRECISIONS["fp8_e4m3fn"]
    return precision


def in_precision(weights: Mapping[str, Stored], precision: Precision) -> dict[str, Stored]:
    """A part's weights, by their names without prefix, in this precision; those that have it already stay the same.

    Weights with scales keep them, unless `precision.every` asks for another type.
    """
    if precision.every is not None:
        plain = {name: stored for name, stored in weights.items() if not name.endswith(SCALE)}
        return {
            name: _cast(_unscaled(stored, weights.get(name.removesuffix(WEIGHT) + SCALE)), precision.every)
            for name, stored in plain.items()
        }
    if precision.large is None:
        return dict(weights)
    kept = dict(weights)
    for name, stored in weights.items():
        layer = name.removesuffix(WEIGHT)
        if stored.dtype == precision.large or not LARGE.search(name):
            continue
        if precision.scaled:
            kept[layer + SCALE] = Stored(
                (), torch.float32, lambda stored=stored: _scale(stored.read(), precision.large)
            )
            kept[name] = replace(
                stored, dtype=precision.large, read=lambda stored=stored: _divided(stored.read(), precision.large)
            )
        else:
            kept[name] = _cast(stored, precision.large)
    return kept


def _cast(stored: Stored, dtype: torch.dtype) -> Stored:
    if stored.dtype == dtype:
        return stored
    return replace(stored, dtype=dtype, read=lambda: _fitting(stored, dtype))


def _fitting(stored: Stored, dtype: torch.dtype) -> Tensor:
    tensor = _clamped(stored.read(), dtype)
    if dtype == torch.float16 and not is_finite(tensor):
        raise CheckpointError(f"{stored.origin} holds values that float16 cannot; choose bf16 or fp32.")
    return tensor


def _unscaled(stored: Stored, scale: Stored | None) -> Stored:
    if scale is None:
        return stored
    return replace(stored, dtype=torch.float32, read=lambda: stored.read().float() * scale.read())


def _scale(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What a matrix is to be divided by: its largest value becomes the type's."""
    largest = tensor.abs().max().float()
    return torch.where(largest > 0, largest / torch.finfo(dtype).max, 1.0)


def _divided(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return _clamped(tensor.float() / _scale(tensor, dtype), dtype)


def _clamped(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    # Unlike the others, fp8 has no infinity: what is too large would become NaN.
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        tensor = tensor.clamp(-largest, largest)
    return tensor.to(dtype)
