"""The choices of `weight_dtype`, as in ComfyUI's own loaders, for the decoder and the language model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .lazy_tensors import LazyTensor
from .quantized import dequantized, marked, quantized

# The large matrices, 97 % of the decoder and 82 % of the language model. Everything else keeps its precision: norms,
# embeddings, biases, the refiner's gates, the input layers of latents, time and text, and the final layer.
LARGE = re.compile(
    r"(double_blocks|single_blocks)\.\d+\..*\.weight$"
    r"|individual_token_refiner\.blocks\.\d+\.(self_attn_qkv|self_attn_proj|mlp\.fc\d)\.weight$"
    r"|^llm\.model\.layers\.\d+\..*_proj\.weight$"
)


@dataclass(frozen=True)
class Precision:
    """The types in which weights are kept.

    every   dtype of all weights; None: as they are stored, or as the device computes best
    large   dtype of the large matrices; None: as the others
    fast    multiply in `large` too, on a GPU that can
    scaled  each large matrix is divided by a scale, so that it uses the range of `large`
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


def in_precision(tensors: Mapping[str, LazyTensor], precision: Precision) -> dict[str, LazyTensor]:
    """A component's tensors, by their names without prefix, in this precision.

    Quantized layers are not changed, unless `precision.every` asks for another type, and get their marks.
    """
    if precision.every is not None:
        return {name: tensor.cast(precision.every) for name, tensor in dequantized(tensors).items()}
    kept = dict(tensors)
    for name, tensor in tensors.items():
        if precision.large is None or tensor.dtype == precision.large or not LARGE.search(name):
            continue
        kept |= quantized(name, tensor) if precision.scaled else {name: tensor.cast(precision.large)}
    return marked(kept, multiply=precision.fast)
