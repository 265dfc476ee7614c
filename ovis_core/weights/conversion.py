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
from collections.abc import Callable, Mapping
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
            checksum = _write_file(parts[file], tensors, count)
            if CAN_READ_BACK and _read_back(parts[file], count) != checksum:
                raise CheckpointError(
                    f"{parts[file]} differed when it was read back, and was deleted; check the disk, or choose another "
                    "one."
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


def _write_file(file: Path, tensors: Mapping[str, LazyTensor], count: Callable[[int, str], None]) -> int:
    """Writes a safetensors file and returns its checksum.

    Large elements come first and metadata last, so that every tensor begins at a multiple of its element's size.
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
    checksum = zlib.crc32(text)
    with file.open("wb") as sink:
        sink.write(text)
        for name, tensor in tensors.items():
            data = _raw(_read(name, tensor))
            checksum = zlib.crc32(data, checksum)
            sink.write(data)
            count(data.nbytes, "writing")
        sink.flush()
        os.fsync(sink.fileno())
    return checksum


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


def _read_back(file: Path, count: Callable[[int, str], None]) -> int:
    """The checksum of a file as the disk returns it, not the system's cache."""
    checksum = 0
    with file.open("rb", buffering=0) as source:
        os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := source.read(BLOCK):
            checksum = zlib.crc32(block, checksum)
            count(len(block), "checking")
    return checksum


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
