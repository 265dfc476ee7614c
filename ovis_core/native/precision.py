"""How weights are kept: the choices of ComfyUI's own loaders, for the decoder and the language model."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


def convert(weights: dict[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """A state dict in this precision; what has it already is not copied."""
    if precision.every is not None:
        return {name: tensor.to(precision.every) for name, tensor in weights.items()}
    if precision.large is None:
        return weights
    largest = torch.finfo(precision.large).max
    return {
        name: tensor.clamp(-largest, largest).to(precision.large) if LARGE.search(name) else tensor
        for name, tensor in weights.items()
    }


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
