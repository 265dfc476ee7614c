"""A model's files -> other files: one for all parts or one for each, in another precision.

Tensor by tensor, so that memory does not grow with the model; a file carries its name only when it is whole and has
been read back.
"""

from __future__ import annotations

import errno
import json
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from . import tokenizer
from .checkpoint import CARRIED, DECODER, TEXT, VAE, Checkpoint, Kind, Part
from .config import dump_sections
from .precision import Precision, convert
from .weights_file import CheckpointError

DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}
NAMES = {DECODER: "diffusion_model", TEXT: "text_encoder", VAE: "vae"}  # of the files, where each part has its own


@dataclass(frozen=True)
class _Entry:
    """One tensor to be written: its name, where it comes from, and what it will be."""

    name: str
    read: Callable[[], Tensor]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


def write_one(
    checkpoint: Checkpoint, file: Path, precision: Precision, report: Callable[[int, int], object] = lambda *_: None
) -> list[Path]:
    """Writes all parts into one file, under ComfyUI's prefixes; answers it.

    report  called with bytes done and bytes in all
    """
    entries = [
        entry
        for part in (checkpoint.decoder, checkpoint.text, checkpoint.vae)
        for entry in _entries(part, part.kind.prefixes[1], precision)
    ]
    entries += _tokenizer(checkpoint.tokenizer, TEXT.prefixes[1])
    _write({file: (entries, _metadata(checkpoint, DECODER, TEXT, VAE))}, report)
    return [file]


def write_parts(
    checkpoint: Checkpoint, folder: Path, precision: Precision, report: Callable[[int, int], object] = lambda *_: None
) -> list[Path]:
    """Writes a file for each part into `folder`, as core's ModelSave, CLIPSave and VAESave do; answers them."""
    files = {}
    for part in (checkpoint.decoder, checkpoint.text, checkpoint.vae):
        entries = list(_entries(part, DECODER.prefixes[1] if part.kind == DECODER else "", precision))
        if part.kind == TEXT:
            entries += _tokenizer(checkpoint.tokenizer, "")
        files[folder / f"{NAMES[part.kind]}.safetensors"] = (entries, _metadata(checkpoint, part.kind))
    _write(files, report)
    return list(files)


def _entries(part: Part, prefix: str, precision: Precision) -> Iterator[_Entry]:
    kept = precision if part.kind != VAE else Precision()
    for name, file in part.files.items():

        def read(name: str = name, file: Path = file) -> Tensor:
            # Opened for each tensor, so that what the system has mapped of the file goes with it.
            with safe_open(file, framework="pt") as tensors:
                return convert(name, tensors.get_tensor(part.prefix + name), kept)

        with safe_open(file, framework="pt") as tensors:
            piece = tensors.get_slice(part.prefix + name)
            stored = next((dtype for dtype, called in DTYPES.items() if called == piece.get_dtype()), None)
            if stored is None:
                raise CheckpointError(f"{file}: tensor {part.prefix + name} is {piece.get_dtype()}, which no part is.")
            dtype = convert(name, torch.empty(0, dtype=stored), kept).dtype
            yield _Entry(prefix + name, read, dtype, tuple(piece.get_shape()))


def _tokenizer(source: Path | Mapping[str, bytes] | None, prefix: str) -> Iterator[_Entry]:
    for name in tokenizer.FILES:
        data = source.get(name) if isinstance(source, Mapping) else _bytes(source / name) if source else None
        if data is not None:
            tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            yield _Entry(f"{prefix}{CARRIED}{name}", lambda tensor=tensor: tensor, torch.uint8, tuple(tensor.shape))


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _metadata(checkpoint: Checkpoint, *kinds: Kind) -> dict[str, str]:
    sections = {name: getattr(checkpoint.config, name) for kind in kinds for name in kind.sections}
    return {"format": "pt", CARRIED.rstrip("."): dump_sections(**sections).decode()}


def _write(files: Mapping[Path, tuple[list[_Entry], dict[str, str]]], report: Callable[[int, int], object]) -> None:
    for file in files:
        if file.exists():
            raise CheckpointError(f"{file} is there already; delete it, or choose another name.")
    # Each byte is written once and read back once.
    total = 2 * sum(entry.size for entries, _ in files.values() for entry in entries)
    folder = next(iter(files)).parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if total // 2 > free:
        raise CheckpointError(f"{folder}: {total / 2e9:.1f} GB are needed and {free / 1e9:.1f} GB free; make room.")
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        report(done, total)

    parts = {file: file.with_name(f"{file.name}.part") for file in files}
    try:
        for file, (entries, metadata) in files.items():
            sums = _write_file(parts[file], entries, metadata, count)
            _read_back(parts[file], sums, count)
        for file, part in parts.items():
            part.replace(file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"the disk of {folder} is full; make room and run it again.") from error
        raise CheckpointError(f"{error.filename or folder} cannot be written ({error.strerror or error}).") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write_file(
    file: Path, entries: list[_Entry], metadata: dict[str, str], count: Callable[[int], None]
) -> dict[str, int]:
    """Writes a safetensors file; name -> checksum."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sums = {}
    with file.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            data = _raw(entry.read())
            sums[entry.name] = zlib.crc32(data)
            sink.write(data)
            count(entry.size)
    return sums


def _read_back(file: Path, sums: Mapping[str, int], count: Callable[[int], None]) -> None:
    for name, expected in sums.items():
        with safe_open(file, framework="pt") as tensors:
            data = _raw(tensors.get_tensor(name))
        if zlib.crc32(data) != expected:
            raise CheckpointError(f"{file}: tensor {name} came back changed; the disk is failing. It was deleted.")
        count(data.nbytes)


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
