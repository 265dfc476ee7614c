"""Rotary positions: tables of angles, and rotations by them, in float32.

The decoder rotates the interleaved pairs (2 i, 2 i + 1) of a head's D channels; the language model and the visual
tokenizer rotate the pairs (i, i + D / 2) of its halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NO_FLOAT64 = ("mps", "npu", "privateuseone", "xpu")  # device types


def pair_table(positions: Tensor, axes_dim: Sequence[int], theta: float) -> Tensor:
    """Positions (L, axes) -> table (1, 1, L, D / 2, 2, 2) float32 for `rotate_pairs`, D = sum of `axes_dim`.

    Frequencies and angles are float64, as in FLUX; the two last dimensions are the rotation matrix of one pair.
    """
    device = torch.device("cpu") if positions.device.type in NO_FLOAT64 else positions.device
    pairs = []
    for axis, dim in enumerate(axes_dim):
        scale = torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim
        pairs.append(positions[:, axis].to(device, torch.float64)[:, None] / theta**scale)
    angle = torch.cat(pairs, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    table = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    return table[None, None].to(positions.device, torch.float32)


def rotate_pairs(x: Tensor, pe: Tensor) -> Tensor:
    """Rotates the interleaved pairs of x (B, heads, L, D) without a copy of x itself in float32."""
    pairs = x.unflatten(-1, (-1, 1, 2))
    rotated = pe[..., 0] * pairs[..., 0]
    return rotated.addcmul_(pe[..., 1], pairs[..., 1]).flatten(-2).type_as(x)


def line_tables(length: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (length, 1, dim) float32 of the positions in a text, for `rotate_halves`."""
    return _half_tables(_angles(length, dim, theta, device))


def grid_tables(rows: int, columns: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (rows, columns, 1, dim) float32 of the positions in an image, for `rotate_halves`.

    The first half of the pairs rotates by rows, the second by columns.
    """
    row = _angles(rows, dim // 2, theta, device)[:, None].expand(-1, columns, -1)
    column = _angles(columns, dim // 2, theta, device).expand(rows, -1, -1)
    return _half_tables(torch.cat((row, column), dim=-1))


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs of halves of x (B, L, heads, D); cos and sin (L, 1, D)."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin).to(x.dtype)


def _angles(length: int, dim: int, theta: float, device: torch.device) -> Tensor:
    """(length, dim / 2) float32 of the positions from 0 on."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return torch.arange(length, dtype=torch.float32, device=device)[:, None] * (1.0 / theta**exponent)


def _half_tables(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Angles (..., D / 2) -> cos and sin (..., 1, D); sin includes the rotation's signs."""
    cos, sin = angle.cos()[..., None, :], angle.sin()[..., None, :]
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
