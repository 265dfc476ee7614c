"""How weights are kept: the choices of ComfyUI's own loaders, for the decoder and the language model."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

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

    every  dtype of all weights; None: as they are stored, or as the device computes best
    large  dtype of the large matrices; None: as the others
    fast   multiply in `large` too, on a GPU that can
    """

    every: torch.dtype | None = None
    large: torch.dtype | None = None
    fast: bool = False


PRECISIONS = {
    "default": Precision(),
    "bf16": Precision(every=torch.bfloat16),
    "fp16": Precision(every=torch.float16),
    "fp32": Precision(every=torch.float32),
    "fp8_e4m3fn": Precision(large=torch.float8_e4m3fn),
    "fp8_e4m3fn_fast": Precision(large=torch.float8_e4m3fn, fast=True),
}
DEFAULT = PRECISIONS["default"]


def as_stored(precision: Precision, weights: dict[str, Tensor]) -> Precision:
    """The precision for these weights: large matrices that are stored in 8 bits stay so by default."""
    if precision == DEFAULT and any(tensor.dtype == torch.float8_e4m3fn for tensor in weights.values()):
        return PRECISIONS["fp8_e4m3fn"]
    return precision


def convert(name: str, tensor: Tensor, precision: Precision) -> Tensor:
    """One of a part's tensors, by its name without prefix, in this precision; the same one where it has it already."""
    if precision.every is not None:
        return tensor.to(precision.every)
    if precision.large in (None, tensor.dtype) or not LARGE.search(name):
        return tensor
    largest = torch.finfo(precision.large).max
    return tensor.clamp(-largest, largest).to(precision.large)


def convert_all(weights: dict[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """`convert` of a state dict."""
    return {name: convert(name, tensor, precision) for name, tensor in weights.items()}
