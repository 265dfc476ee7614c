"""Positions of the decoder's tokens, and their rotary tables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .rotary import pair_table

TEXT_INDEX = 0

Grid = tuple[int, int, int]  # index (0 the image, n the n-th reference), rows, columns of one image's tokens


class RotaryTables:
    """A cache of tables for the last few layouts: in a sampling run they are the same from pass to pass."""

    KEPT = 4  # layouts: those of guidance's conditions, and one more

    def __init__(self, axes_dim: tuple[int, ...], theta: float) -> None:
        self.axes_dim, self.theta = axes_dim, theta
        self._tables: dict[tuple[int, tuple[Grid, ...], torch.device], Tensor] = {}

    def __call__(self, text_length: int, grids: tuple[Grid, ...], device: torch.device) -> Tensor:
        """`pair_table` of `positions`."""
        if torch.compiler.is_compiling():  # a compiler would guard on every change of the cache
            numbers = [number for grid in grids for number in grid]
            return compiled_table(text_length, numbers, list(self.axes_dim), float(self.theta), device)
        layout = (text_length, grids, device)
        table = self._tables.pop(layout, None)
        if table is None:
            # Training cannot use tensors that were made in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                table = layout_table(*layout, self.axes_dim, self.theta)
        self._tables[layout] = table
        if len(self._tables) > self.KEPT:
            del self._tables[next(iter(self._tables))]
        return table

    def clear(self) -> None:
        """Frees the tables."""
        self._tables.clear()


def layout_table(
    text_length: int, grids: Sequence[Grid], device: torch.device, axes_dim: Sequence[int], theta: float
) -> Tensor:
    """`pair_table` of `positions`."""
    return pair_table(positions(text_length, grids, device), axes_dim, theta)


def compiled_table(
    text_length: int, numbers: Sequence[int], axes_dim: Sequence[int], theta: float, device: torch.device
) -> Tensor:
    """`layout_table` as one operation for a compiler, which would fuse its float64 sines into every rotation.

    numbers  of all grids
    """
    return layout_table(text_length, _grids(numbers), device, axes_dim, theta)


if hasattr(torch.library, "custom_op"):  # torch 2.4; an older compiler fuses the sines into every rotation
    # The schema is written out because torch 2.4 cannot derive it from annotations that are strings.
    compiled_table = torch.library.custom_op(
        "ovis_u1::rotary_table",
        compiled_table,
        mutates_args=(),
        schema="(SymInt text_length, SymInt[] numbers, SymInt[] axes_dim, float theta, Device device) -> Tensor",
    )

    @compiled_table.register_fake
    def _(
        text_length: int, numbers: Sequence[int], axes_dim: Sequence[int], theta: float, device: torch.device
    ) -> Tensor:
        length = text_length + sum(rows * columns for _, rows, columns in _grids(numbers))
        return torch.empty(1, 1, length, sum(axes_dim) // 2, 2, 2, device=device)


def _grids(numbers: Sequence[int]) -> list[Grid]:
    return [(numbers[i], numbers[i + 1], numbers[i + 2]) for i in range(0, len(numbers), 3)]


def positions(text_length: int, grids: Sequence[Grid], device: torch.device) -> Tensor:
    """(L + N, 3) float32: (index, row, column) of each token, text first."""
    text = torch.full((text_length, 3), float(TEXT_INDEX), device=device)
    return torch.cat((text, *(grid_positions(*grid, device) for grid in grids)))


def grid_positions(index: int, rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, 3) float32: (index, row, column)."""
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack((torch.full_like(row, index), row, column), dim=-1).flatten(0, 1)
