"""Scaled dot-product attention: with rotary positions, as ComfyUI's own networks call it, and causal attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .rotary import rotate_pairs


class Attention(Protocol):
    """An attention function that the networks can use."""

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        pe: Tensor | None,
        mask: Tensor | None = None,
        transformer_options: dict[str, Any] = ...,
    ) -> Tensor:
        """q, k, v (B, heads, L, D), `pe` a `rotary.pair_table` or None -> (B, L, heads * D)."""
        ...


def torch_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pe: Tensor | None,
    mask: Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
) -> Tensor:
    """`Attention` with torch's own function."""
    if pe is not None:
        q, k = rotate_pairs(q, pe), rotate_pairs(k, pe)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return x.transpose(1, 2).flatten(2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (B, heads, n, D), k and v (B, key-value heads, m, D) -> (B, n, heads * D); q's are the last n of m positions.

    Each key head serves an equal number of neighbouring query heads.
    """
    n, m = q.shape[2], k.shape[2]
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    if n == m:
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return x.transpose(1, 2).flatten(2)


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Turns off cuDNN's attention kernels, for sequences whose length changes from call to call.

    Torch prefers them on an H100 and similar GPUs. They make a plan for each new length, which takes tens of
    milliseconds for each generated token, and pays off only after many calls of one length.
    """
    enabled = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(enabled)
