"""The choices of `weight_dtype`, as in ComfyUI's own loaders, for the decoder and the text encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .layer_formats import FORMATS
from .lazy_tensors import LazyTensor
from .quantization import allow_quantized_matmul, dequantize, plain_tensors, quantize, quantized_layers

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
    fast    multiply in `large`, and in the formats of quantized layers, on a GPU that can
    format  of `layer_formats.FORMATS`, for the large matrices; None: they are not quantized
    """

    every: torch.dtype | None = None
    large: torch.dtype | None = None
    fast: bool = False
    format: str | None = None


PRECISIONS = {
    "default": Precision(),
    "bf16": Precision(every=torch.bfloat16),
    "fp16": Precision(every=torch.float16),
    "fp32": Precision(every=torch.float32),
    "fp8_e4m3fn": Precision(large=torch.float8_e4m3fn),
    "fp8_e4m3fn_fast": Precision(large=torch.float8_e4m3fn, fast=True),
}
DEFAULT = PRECISIONS["default"]
QUANTIZED_PRECISIONS = {  # further choices of convert.py
    "fp8_scaled": Precision(format="float8_e4m3fn"),
    "int8": Precision(format="int8_tensorwise"),
    "mxfp8": Precision(format="mxfp8"),
    "nvfp4": Precision(format="nvfp4"),
    "convrot_w4a4": Precision(format="convrot_w4a4"),
}


def in_precision(tensors: Mapping[str, LazyTensor], precision: Precision) -> dict[str, LazyTensor]:
    """A component's tensors, by their names without prefix, in this precision.

    Quantized layers are not changed, unless `precision.every` asks for another type.
    """
    if precision.every is not None:
        return {name: tensor.cast(precision.every) for name, tensor in dequantize(tensors).items()}
    kept = dict(tensors)
    for name, tensor in plain_tensors(tensors).items():
        if not LARGE.search(name) or tensor.dtype.itemsize == 1:
            continue
        if precision.format is not None:
            kept |= quantize(name, tensor, FORMATS[precision.format])
        elif precision.large is not None:
            kept[name] = tensor.cast(precision.large)
    return allow_quantized_matmul(kept) if precision.fast else kept


def dequantize_other_layers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """These tensors with bfloat16 in place of quantized layers other than the large matrices.

    Networks use weights of other layers, such as embeddings, in more ways than ComfyUI's quantized layers offer.
    """
    others = [layer for layer in quantized_layers(tensors) if not LARGE.search(f"{layer}.weight")]
    return dequantize(tensors, torch.bfloat16, others) if others else dict(tensors)
