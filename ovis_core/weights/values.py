"""The values of weights: whether they are finite, and casts that keep them so."""

from __future__ import annotations

import torch
from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of weights contains neither NaN nor infinity."""
    if tensor.dtype == torch.float8_e5m2:
        return not bool(((tensor.view(torch.uint8) & 0x7C) == 0x7C).any())
    if tensor.dtype.itemsize == 1:
        # float8_e4m3fn has no infinity, and NaN in two forms.
        return tensor.dtype != torch.float8_e4m3fn or not bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any())
    if tensor.numel() == 0:
        return True
    # Both extremes are NaN if any value is. A sum would overflow float16, or need a copy in float32.
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))


def saturated(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in another dtype. Values outside the range of an 8-bit float are clamped to it."""
    if dtype.itemsize == 1:
        largest = torch.finfo(dtype).max
        tensor = tensor.clamp(-largest, largest)
    return tensor.to(dtype)
