"""Tensors that are still in their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .safetensors_file import CheckpointError, TensorEntry, is_metadata
from .values import is_finite, saturated

# Dtypes of weights by their names in safetensors.
DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
}
if "float8_e8m0fnu" in dir(torch):  # torch 2.7 and later
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu
FP8 = torch.float8_e4m3fn
NAMES_OF = {dtype: name for name, dtype in DTYPES.items()}  # dtype -> its name in safetensors
SOURCE_PATH = "_comfy_source_path"  # a storage's file; newer versions of ComfyUI look up the speed of its disk
REMAP_EVERY = 64 * 2**20  # bytes read from a memory map before it is mapped again, which frees them


@dataclass(frozen=True)
class LazyTensor:
    """A tensor's shape, dtype, a function that reads it, and for messages its origin.

    The tensor that was read stays valid. Do not write to it unless it is `persistent`: it is then in memory, or mapped
    privately for this process, and a layer may use it as its weight.

    file    its file; None if it was made in memory
    matrix  shape of the matrix, if the tensor stores one in fewer bits
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    origin: str = ""
    persistent: bool = False
    file: Path | None = None
    matrix: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> LazyTensor:
        """A lazy tensor of a tensor in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def cast(self, dtype: torch.dtype) -> LazyTensor:
        """The tensor in another dtype. Reading it raises `CheckpointError` for values that float16 cannot hold."""
        if self.dtype == dtype:
            return self
        return replace(self, dtype=dtype, read=lambda: self._read_as(dtype))

    def _read_as(self, dtype: torch.dtype) -> Tensor:
        values = saturated(self.read(), dtype)
        if dtype == torch.float16 and not is_finite(values):
            raise CheckpointError(
                f"{self.origin} has values that are too large for float16; set weight_dtype (--dtype of "
                "scripts/convert.py) to bf16 or fp32."
            )
        return values

    @property
    def meta(self) -> Tensor:
        """The tensor without its data."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def untyped_storage(self) -> SimpleNamespace:
        """Where ComfyUI looks for the tensor's file."""
        return SimpleNamespace(**{SOURCE_PATH: self.file and os.path.realpath(self.file)})

    def read_with_source(self) -> Tensor:
        """`read`, with the tensor's file where ComfyUI looks for it."""
        tensor = self.read()
        setattr(tensor.untyped_storage(), SOURCE_PATH, getattr(self.untyped_storage(), SOURCE_PATH))
        return tensor


def source_file(tensor: Tensor) -> Path | None:
    """The file that ComfyUI loaded a tensor from; None if it is not known. Versions up to 0.33 do not keep it."""
    path = getattr(tensor.untyped_storage(), SOURCE_PATH, None)
    return None if path is None else Path(path)


def entry_of(name: str, tensor: Tensor) -> TensorEntry:
    """A tensor's entry, as the header of its file has it."""
    # Other packs' tensors, such as GGUF's, do not contain the values that their shape and dtype promise.
    plain = type(tensor) in (Tensor, nn.Parameter)
    dtype = NAMES_OF.get(tensor.dtype, str(tensor.dtype)) if plain else type(tensor).__name__
    data = tensor.cpu().numpy().tobytes() if dtype == "U8" and is_metadata(name) else None
    return TensorEntry(name, tuple(tensor.shape), dtype, source_file(tensor), data)


class TensorReader:
    """Reads tensors through memory maps of their files.

    Pages that were read from a map count as the process's memory, so files are mapped again every `REMAP_EVERY` bytes.

    persistent  the maps stay, and so do the tensors
    copied      tensors are copied into memory, and no file stays mapped
    """

    def __init__(self, persistent: bool = False, copied: bool = False) -> None:
        self.persistent = persistent
        self._keep_maps = persistent and not copied
        self._copied = copied
        self._maps: dict[Path, Any] = {}
        self._read = 0

    def __call__(self, entry: TensorEntry) -> Tensor:
        """Reads the tensor of an entry."""
        if self._read > REMAP_EVERY and not self._keep_maps:
            self._maps.clear()
            self._read = 0
        if entry.file not in self._maps:
            self._maps[entry.file] = safe_open(entry.file, framework="pt")
        tensor = self._maps[entry.file].get_tensor(entry.name)
        self._read += tensor.nbytes
        return tensor.clone() if self._copied else tensor


def lazy_tensors(
    entries: Mapping[str, TensorEntry], read: Callable[[TensorEntry], Tensor], persistent: bool = False
) -> dict[str, LazyTensor]:
    """Lazy tensors for these entries, which `read` reads.

    Raises `CheckpointError` for a dtype that Ovis-U1 does not use.
    """
    found = {}
    for name, entry in entries.items():
        dtype = DTYPES.get(entry.dtype)
        origin = f"{entry.file}: tensor {entry.name}" if entry.file else f"tensor {entry.name}"
        if dtype is None:
            raise CheckpointError(
                f"{origin}: expected one of the dtypes {', '.join(DTYPES)}, got {entry.dtype}; choose another file."
            )
        if entry.data is not None:
            found[name] = LazyTensor.of(torch.frombuffer(bytearray(entry.data), dtype=dtype))
            continue
        found[name] = LazyTensor(entry.shape, dtype, partial(read, entry), origin, persistent, entry.file, entry.matrix)
    return found
