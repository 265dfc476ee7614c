"""A model's files -> other files: one for all parts or one for each, in another precision.

Tensor by tensor, so that memory does not grow with the model; a file carries its name only when it is whole and has
been read back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import DECODER, TEXT, VAE, Checkpoint, Part
from .lazy_tensors import DTYPES, Stored, scale_marks, stored_weights
from .metadata import carried
from .precision import Precision, in_precision
from .safetensors_file import CheckpointError

NAMES_OF = {dtype: name for name, dtype in DTYPES.items()}  # of the types, in a file
NAMES = {DECODER: "diffusion_model", TEXT: "text_encoder", VAE: "vae"}  # of the files, where each part has its own


def write_one(
    checkpoint: Checkpoint, file: Path, precision: Precision, report: Callable[[int, int], object] = lambda *_: None
) -> list[Path]:
    """Writes all parts into one file, under ComfyUI's prefixes; answers it.

    report  called with bytes done and bytes in all

    Raises `CheckpointError` where the file is there already, or reading, writing or reading back fails.
    """
    entries: dict[str, Stored] = {}
    for part in (checkpoint.decoder, checkpoint.text, checkpoint.vae):
        entries |= _entries(checkpoint, part, part.kind.comfy_prefix, precision)
    _write({file: entries}, report)
    return [file]


def write_parts(
    checkpoint: Checkpoint, folder: Path, precision: Precision, report: Callable[[int, int], object] = lambda *_: None
) -> list[Path]:
    """Writes a file for each part into `folder`, as core's ModelSave, CLIPSave and VAESave do; answers them.

    Raises `CheckpointError` as `write_one` does.
    """
    files = {}
    for part in (checkpoint.decoder, checkpoint.text, checkpoint.vae):
        prefix = DECODER.comfy_prefix if part.kind == DECODER else ""
        files[folder / f"{NAMES[part.kind]}.safetensors"] = _entries(checkpoint, part, prefix, precision)
    _write(files, report)
    return list(files)


def _entries(checkpoint: Checkpoint, part: Part, prefix: str, precision: Precision) -> dict[str, Stored]:
    weights = stored_weights(part)
    if part.kind != VAE:
        weights = in_precision(weights, precision)
        weights |= scale_marks(weights)
        sections = {name: getattr(checkpoint.config, name) for name in part.kind.sections}
        besides = carried(checkpoint.tokenizer if part.kind == TEXT else None, **sections)
        weights |= {name: Stored.of(tensor) for name, tensor in besides.items()}
    return {prefix + name: stored for name, stored in weights.items()}


def _write(files: Mapping[Path, dict[str, Stored]], report: Callable[[int, int], object]) -> None:
    for file in files:
        if file.exists():
            raise CheckpointError(f"{file} is there already; delete it, or choose another name.")
    # Each byte is written once and read back once.
    total = 2 * sum(stored.nbytes for entries in files.values() for stored in entries.values())
    folder = next(iter(files)).parent
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        report(done, total)

    parts = {file: file.with_name(f"{file.name}.part") for file in files}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if total // 2 > free:
            raise CheckpointError(f"{folder}: {total / 2e9:.1f} GB are needed and {free / 1e9:.1f} GB free; make room.")
        for file, entries in files.items():
            sums = _write_file(parts[file], entries, count)
            _read_back(parts[file], sums, count)
        for file, part in parts.items():
            part.replace(file)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise CheckpointError(f"the disk of {folder} is full; make room and run it again.") from error
        raise CheckpointError(f"{error.filename or folder} cannot be written ({error.strerror or error}).") from error
    finally:
        for part in parts.values():
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


def _write_file(file: Path, entries: Mapping[str, Stored], count: Callable[[int], None]) -> dict[str, int]:
    """Writes a safetensors file; name -> checksum.

    Large elements come first and metadata last, so that every tensor begins at a multiple of its element's size.
    """
    entries = dict(sorted(entries.items(), key=lambda entry: _place(entry[1].dtype)))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, stored in entries.items():
        start, end = end, end + stored.nbytes
        header[name] = {
            "dtype": NAMES_OF[stored.dtype],
            "shape": list(stored.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    sums = {}
    with file.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for name, stored in entries.items():
            data = _raw(_read(name, stored))
            sums[name] = zlib.crc32(data)
            sink.write(data)
            count(data.nbytes)
    return sums


def _place(dtype: torch.dtype) -> tuple[int, bool]:
    """Sort key of a file's tensors: large elements first, metadata last."""
    return -dtype.itemsize, dtype == torch.uint8


def _read(name: str, stored: Stored) -> Tensor:
    try:
        return stored.read()
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"tensor {name} of the source cannot be read ({error}); check its file.") from error


def _read_back(file: Path, sums: Mapping[str, int], count: Callable[[int], None]) -> None:
    for name, expected in sums.items():
        with safe_open(file, framework="pt") as tensors:
            data = _raw(tensors.get_tensor(name))
        if zlib.crc32(data) != expected:
            raise CheckpointError(f"{file}: tensor {name} came back changed; the disk is failing. It was deleted.")
        count(data.nbytes)


def _raw(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
