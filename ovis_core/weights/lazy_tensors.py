"""Tensors that are still in their files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .checkpoint import SCALES, WEIGHT, Part
from .safetensors_file import CheckpointError

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}
SCALE, OLDER_SCALE = SCALES
MARK = ".comfy_quant"
PIECE = 64 * 2**20  # bytes read before what the system has mapped of the files goes back


@dataclass(frozen=True)
class Stored:
    """A tensor's shape and dtype, how to read it, and for messages where it is.

    What is read stays valid, and must not be written to unless it is `lasting`: then it is mapped for this process
    alone, or in its memory, and a layer may have it for its weight.

    file  that it comes from; None for one that is made here
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    origin: str = ""
    lasting: bool = False
    file: Path | None = None

    @classmethod
    def of(cls, tensor: Tensor, file: Path | None = None) -> Stored:
        """One that is in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor, file=file)

    @property
    def meta(self) -> Tensor:
        """The tensor without its data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def untyped_storage(self) -> SimpleNamespace:
        """ComfyUI reads the source file's path from this, to learn how fast its disk is."""
        return SimpleNamespace(_comfy_source_path=self.file and os.path.realpath(self.file))


class _Maps:
    """Memory maps of files; unless they are to last, they are made anew every `PIECE` bytes.

    What was read of a map counts as the process's memory.

    copied  tensors are copied into memory, and no map is kept
    """

    def __init__(self, lasting: bool, copied: bool) -> None:
        self._lasting = lasting and not copied
        self._copied = copied
        self._open: dict[Path, Any] = {}
        self._read = 0

    def __call__(self, file: Path, name: str) -> Tensor:
        if self._read > PIECE and not self._lasting:
            self._open.clear()
            self._read = 0
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        tensor = self._open[file].get_tensor(name)
        self._read += tensor.nbytes
        return tensor.clone() if self._copied else tensor


def stored_weights(part: Part, lasting: bool = False, copied: bool = False) -> dict[str, Stored]:
    """A part's tensors by their names without prefix.

    A layer whose weight is in 8 bits may have its scale, by which the weight is to be multiplied, as `SCALE`, however
    the file names it. Raises `CheckpointError` for a dtype that no part has; so does reading for NaN
    and infinity.

    lasting  they may stay in their files for good
    copied   they are copied out of their files, none of which stays mapped
    """
    found, maps = {}, _Maps(lasting, copied)
    headers = {file: safe_open(file, framework="pt") for file in set(part.files.values())}
    for name, file in part.files.items():
        full = part.prefix + name
        piece = headers[file].get_slice(full)
        dtype = DTYPES.get(piece.get_dtype())
        if dtype is None:
            raise CheckpointError(f"{file}: tensor {full} is {piece.get_dtype()}, which no part of Ovis-U1 is.")
        read = partial(_checked, maps, file, full)
        shape = tuple(piece.get_shape())
        found[stored_name(name)] = Stored(shape, dtype, read, f"{file}: tensor {full}", lasting, file)
    # Older ComfyUIs write a scale of one for layers that have none.
    without = [layer for layer in scaled_layers(found) if found[layer + WEIGHT].dtype != torch.float8_e4m3fn]
    for layer in without:
        del found[layer + SCALE]
    return found


def _checked(maps: _Maps, file: Path, name: str) -> Tensor:
    tensor = maps(file, name)
    if not is_finite(tensor):
        raise CheckpointError(
            f"{file}: tensor {name} holds NaN or infinity, so the file is damaged; download it again."
        )
    return tensor


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor of weights holds neither NaN nor infinity; takes as long as reading it."""
    if tensor.dtype.itemsize == 1:
        # float8_e4m3fn has no infinity, and NaN in two forms.
        return tensor.dtype != torch.float8_e4m3fn or not bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any())
    if tensor.numel() == 0:
        return True
    # Both are NaN where anything is. A sum would need a copy in float32, for fear of float16.
    return all(bool(extreme.isfinite()) for extreme in torch.aminmax(tensor))


def stored_name(name: str) -> str:
    """A tensor's name in a file -> the one it goes by here."""
    layer = next((name.removesuffix(scale) for scale in SCALES if name.endswith(scale)), None)
    return name if layer is None else layer + SCALE


def scaled_layers(weights: Mapping[str, Stored]) -> list[str]:
    """Names of the layers that have scales."""
    return [name.removesuffix(SCALE) for name in weights if name.endswith(SCALE)]


def scale_marks(weights: Mapping[str, Stored], multiply: bool = False) -> dict[str, Stored]:
    """Tensors that tell newer ComfyUIs of the layers that have scales.

    multiply  in 8 bits too, on a GPU that can
    """
    mark = {"format": "float8_e4m3fn"} | ({} if multiply else {"full_precision_matrix_mult": True})
    data = torch.frombuffer(bytearray(json.dumps(mark).encode()), dtype=torch.uint8)
    return {layer + MARK: Stored.of(data) for layer in scaled_layers(weights)}
