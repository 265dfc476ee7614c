"""Where the decoder's tokens stand, and the rotary tables of that."""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import rotary_table

TEXT_INDEX = 0

Grid = tuple[int, int, int]  # index (0 the image, n the n-th reference), rows, columns of one image's tokens


class RotaryTables:
    """Tables of the last few layouts: in a sampling run they are the same from pass to pass."""

    KEPT = 4  # the conditions that guidance takes turns with, and one more

    def __init__(self, axes_dim: tuple[int, ...], theta: float) -> None:
        self.axes_dim, self.theta = axes_dim, theta
        self._tables: dict[tuple[int, tuple[Grid, ...], torch.device], Tensor] = {}

    def __call__(self, text_length: int, grids: tuple[Grid, ...], device: torch.device) -> Tensor:
        """`rotary_table` of `positions`."""
        if torch.compiler.is_compiling():  # which would guard against every change of what is kept
            return self._make(text_length, grids, device)
        layout = (text_length, grids, device)
        table = self._tables.pop(layout, None)
        if table is None:
            # Training takes no tensors that were made in inference mode.
            with torch.inference_mode(False), torch.no_grad():
                table = self._make(*layout)
        self._tables[layout] = table
        if len(self._tables) > self.KEPT:
            del self._tables[next(iter(self._tables))]
        return table

    def clear(self) -> None:
        """Gives their memory back."""
        self._tables.clear()

    def _make(self, text_length: int, grids: tuple[Grid, ...], device: torch.device) -> Tensor:
        return rotary_table(positions(text_length, grids, device), self.axes_dim, self.theta)


def positions(text_length: int, grids: tuple[Grid, ...], device: torch.device) -> Tensor:
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
