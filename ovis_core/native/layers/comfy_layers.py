"""ComfyUI's layers and attention for the networks, and access to a layer's cast weight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.flux.math as flux
import comfy.ops
import torch
from comfy.cli_args import args
from comfy.ldm.modules.attention import attention_pytorch, attention_sub_quad
from torch import Tensor, nn

from ...networks.layers import Layers
from ...networks.rotary import rotate_pairs
from ..compat import resident_weight, rotates_in_one_kernel


def comfy_layers(operations: Any, dtype: torch.dtype | None, device: Any) -> Layers:
    """`Layers` of one of ComfyUI's `operations`."""
    return Layers(operations, attention, cast_weight, dtype, device)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pe: Tensor | None,
    mask: Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
) -> Tensor:
    """`networks.attention.Attention` with ComfyUI's attention function, which flags, packs and nodes may choose.

    On a CPU torch's function is used unless a flag chooses another one: ComfyUI's default there is several times
    slower.
    """
    if pe is not None:
        if _rotates_in_one_kernel(q, k, pe):
            q, k = flux.apply_rope(q, k, pe)
        else:
            q, k = rotate_pairs(q, pe), rotate_pairs(k, pe)
    chosen = flux.optimized_attention
    if q.device.type == "cpu" and chosen is attention_sub_quad and not args.use_quad_cross_attention:
        chosen = attention_pytorch
    return chosen(q, k, v, q.shape[1], mask=mask, skip_reshape=True, transformer_options=transformer_options or {})


def _rotates_in_one_kernel(q: Tensor, k: Tensor, pe: Tensor) -> bool:
    # A compiler fuses our rotation with the operations around it, which it cannot do with ComfyUI's kernel. If ComfyUI
    # has no kernel for the device, the types or the version of CUDA, its rotation takes more steps than ours.
    return q.is_cuda and not torch.compiler.is_compiling() and rotates_in_one_kernel(q, k, pe)


@contextmanager
def cast_weight(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """A layer's weight on the device and in the dtype of `like`, with its patches.

    Use one weight at a time: ComfyUI may write the next one to the same memory.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        yield weight
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


@contextmanager
def pinned(network: nn.Module, like: Tensor) -> Iterator[bool]:
    """Whether all weights of `network` are on the device of `like`, and stay there until the context ends.

    With dynamic VRAM a weight is pinned while it is cast. False for weights that are offloaded, or patched at each use.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, comfy.ops.CastWeightBiasOp)]
    with ExitStack() as stack:
        whole = all(stack.enter_context(_pinned(layer, like)) for layer in layers)
        if not whole:
            stack.close()
        yield whole


@contextmanager
def _pinned(layer: nn.Module, like: Tensor) -> Iterator[bool]:
    # A cast to the weight's own dtype does not copy it.
    resident = resident_weight(layer)
    dtype = (layer.weight if resident is None else resident).dtype
    with cast_weight(layer, like.new_empty(0, dtype=dtype)) as weight:
        yield weight is layer.weight or weight is resident_weight(layer)
