"""Converts a model's files to one file, or to one for each component, in another precision.

It works tensor by tensor, so that memory does not grow with the model. A file gets its final name when it is complete
and, on Linux, has been read back from the disk.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .checkpoint import Checkpoint
from .components import DECODER, TEXT, VAE, Component
from .lazy_tensors import NAMES_OF, LazyTensor, TensorReader, lazy_tensors
from .metadata import metadata
from .precision import Precision, in_precision
from .safetensors_file import CheckpointError

BLOCK = 1 << 24  # bytes read back at once
CAN_READ_BACK = hasattr(os, "posix_fadvise")  # on other systems the read would only reach the cache

Report = Callable[[int, int, str], object]
Piece = tuple[int, int]  # bytes of a part of a file, and their checksum

NAMES = {DECODER: "diffusion_model", TEXT: "text_encoder", VAE: "vae"}  # of the files, if each component has its own


def write_one(checkpoint: Checkpoint, file: Path, precision: Precision, report: Report = lambda *_: None) -> list[Path]:
    """Writes all components into one file, under ComfyUI's prefixes, and returns it.

    report  called with bytes done, bytes in all, and "writing" or "checking"

    Raises `CheckpointError` if the file already exists, or reading, writing or reading back fails.
    """
    tensors: dict[str, LazyTensor] = {}
    for component in checkpoint.components.values():
        tensors |= _tensors(checkpoint, component, component.kind.comfy_prefix, precision)
    _write({file: tensors}, report)
    return [file]


def write_parts(
    checkpoint: Checkpoint, folder: Path, precision: Precision, report: Report = lambda *_: None
) -> list[Path]:
    """Writes a file for each component into `folder`, as core's ModelSave, CLIPSave and VAESave do, and returns them.

    Raises `CheckpointError` as `write_one` does.
    """
    files = {}
    for component in checkpoint.components.values():
        prefix = DECODER.comfy_prefix if component.kind == DECODER else ""
        name = f"{NAMES[component.kind]}.safetensors"
        files[folder / name] = _tensors(checkpoint, component, prefix, precision)
    _write(files, report)
    return list(files)


def _tensors(checkpoint: Checkpoint, component: Component, prefix: str, precision: Precision) -> dict[str, LazyTensor]:
    tensors = lazy_tensors(component.entries, TensorReader())
    if component.kind != VAE:
        tensors = in_precision(tensors, precision)
        sections = {name: getattr(checkpoint.config, name) for name in component.kind.sections}
        data = metadata(checkpoint.tokenizer if component.kind == TEXT else None, **sections)
        tensors |= {name: LazyTensor.of(tensor) for name, tensor in data.items()}
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _write(files: Mapping[Path, dict[str, LazyTensor]], report: Report) -> None:
    for file in files:
        if file.exists():
            raise CheckpointError(f"{file} already exists; delete it, or choose another name or folder.")
    needed = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    folder = next(iter(files)).parent
    total, done = (2 if CAN_READ_BACK else 1) * needed, 0

    def count(size: int, doing: str) -> None:
        nonlocal done
        done += size
        report(min(done, total), total, doing)  # headers are not in the total

    parts = {file: file.with_name(f"{file.name}.part") for file in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise CheckpointError(
                f"{folder}: expected {needed / 1e9:.1f} GB of free disk space, got {free / 1e9:.1f} GB; free some "
                "space, or choose another disk."
            )
        for file, tensors in files.items():
            written = _write_file(parts[file], tensors, count)
            if CAN_READ_BACK and not _is_on_disk(parts[file], written, count):
                raise CheckpointError(
                    f"{parts[file]} was not the same when it was read back, and was deleted; check the disk, or "
                    "choose another one."
                )
        for file, part in parts.items():
            part.replace(file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"the disk of {folder} is full; free some space and convert again.") from error
        raise CheckpointError(
            f"{error.filename or folder} cannot be written ({error.strerror or error}); check its permissions, or "
            "choose another folder."
        ) from error
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _write_file(file: Path, tensors: Mapping[str, LazyTensor], count: Callable[[int, str], None]) -> list[Piece]:
    """Writes a safetensors file and returns its pieces in order.

    Large elements come first and metadata last, so that every tensor begins at a multiple of its element's size. They
    are written layer by layer, because a quantized layer's tensors are computed together.
    """
    tensors = dict(sorted(tensors.items(), key=lambda item: _place(item[1])))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES_OF[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    text = len(text).to_bytes(8, "little") + text
    checksums = {}
    with file.open("wb") as sink:
        sink.write(text)
        for name in sorted(tensors, key=lambda name: name.rpartition(".")[0]):
            data = _raw(_read(name, tensors[name]))
            checksums[name] = zlib.crc32(data)
            sink.seek(len(text) + header[name]["data_offsets"][0])
            sink.write(data)
            count(data.nbytes, "writing")
        sink.flush()
        os.fsync(sink.fileno())
    return [(len(text), zlib.crc32(text)), *((tensor.nbytes, checksums[name]) for name, tensor in tensors.items())]


def _place(tensor: LazyTensor) -> tuple[int, bool]:
    """Sort key of a file's tensors: large elements first, metadata last."""
    return -tensor.dtype.itemsize, tensor.dtype == torch.uint8 and len(tensor.shape) == 1


def _read(name: str, tensor: LazyTensor) -> Tensor:
    try:
        return tensor.read()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{tensor.origin or f'tensor {name}'} cannot be read ({error}); download or save the file again."
        ) from error


def _is_on_disk(file: Path, pieces: Iterable[Piece], count: Callable[[int, str], None]) -> bool:
    """Whether the disk returns these pieces, and not only the system's cache."""
    with file.open("rb", buffering=0) as source:
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for size, expected in pieces:
            left, checksum = size, 0
            while left and (block := source.read(min(left, BLOCK))):
                checksum, left = zlib.crc32(block, checksum), left - len(block)
                count(len(block), "checking")
            if left or checksum != expected:
                return False
        return not source.read(1)


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
