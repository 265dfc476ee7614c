"""Latents <-> the decoder's tokens, one for each 2 x 2 of them."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..weights.config import LATENT_PATCH as PATCH


def grid_size(x: Tensor) -> tuple[int, int]:
    """Rows and columns of packed tokens for latents (B, C, H, W); an odd side is padded up."""
    return -(-x.shape[-2] // PATCH), -(-x.shape[-1] // PATCH)


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H/2 * W/2, C * 4), channel first within a token."""
    pad_h, pad_w = -x.shape[-2] % PATCH, -x.shape[-1] % PATCH
    if pad_h or pad_w:
        x = F.pad(x, (0, pad_w, 0, pad_h), mode="replicate")
    return rearrange(x, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=PATCH, pw=PATCH)


def unpack(x: Tensor, height: int, width: int) -> Tensor:
    """Inverse of `pack`, cut to height x width."""
    rows = -(-height // PATCH)
    x = rearrange(x, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=rows, ph=PATCH, pw=PATCH)
    return x[..., :height, :width]
