"""Reads the header and the metadata of a safetensors file; errors say why a file cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

AGAIN = "delete it and download it again."
MAX_HEADER = 100_000_000  # bytes; safetensors does not read longer ones
METADATA = "ovis_u1."  # in the names of tensors that store metadata of the model, as bytes
QUANT_CONFIG = ".comfy_quant"  # ends the name of a tensor with a layer's quant config: JSON that names its format
QUANT_HEADER = "_quantization_metadata"  # in a header: JSON with the quant configs of all layers
MAX_NAMES = 3  # in a message


class CheckpointError(ValueError):
    """A model cannot be used; the message says what to do."""

    __module__ = "builtins"  # ComfyUI shows the module before the name, and the pack's is a long path


@dataclass(frozen=True)
class TensorEntry:
    """A tensor's entry in the header of a file.

    dtype   safetensors' name of it, such as BF16
    file    None for a tensor in memory whose file is not known
    data    its bytes, if it stores metadata
    matrix  shape of the matrix, if it stores one in fewer bits
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path | None
    data: bytes | None = None
    matrix: tuple[int, ...] | None = None


def read_entries(file: Path) -> dict[str, TensorEntry]:
    """Name -> entry of every tensor. Only the bytes of metadata are read, otherwise the header alone.

    Quant configs in the header become entries, as if they were tensors.

    Raises `CheckpointError`, which says what the file is if it is something else.
    """
    try:
        with safe_open(file, framework="np") as tensors:
            found = {}
            for name in tensors.keys():  # noqa: SIM118 (a file handle, not a dict)
                header = tensors.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                data = tensors.get_tensor(name).tobytes() if dtype == "U8" and is_metadata(name) else None
                found[name] = TensorEntry(name, shape, dtype, file, data)
            return found | header_quant_configs(file, (tensors.metadata() or {}).get(QUANT_HEADER), found)
    except SafetensorError as error:
        raise CheckpointError(f"{file} {_instead(file) or f'is damaged or incomplete ({error}); {AGAIN}'}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist; download it, or choose another file.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror or error}); check its permissions.") from error


def is_metadata(name: str) -> bool:
    """Whether a tensor of bytes with this name stores metadata of the model, or a layer's quant config."""
    return METADATA in name or name.endswith(QUANT_CONFIG)


def header_quant_configs(source: object, text: str | None, names: Iterable[str]) -> dict[str, TensorEntry]:
    """Entries for the quant configs of layers in a header, without those that are among these names already.

    source  the file, for messages; a path if there is one
    """
    if text is None:
        return {}
    try:
        layers = dict(json.loads(text)["layers"])
        configs = {layer + QUANT_CONFIG: json.dumps(config).encode() for layer, config in layers.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{source}: {QUANT_HEADER} in its header is not valid; {AGAIN}") from error
    file = source if isinstance(source, Path) else None
    return {
        name: TensorEntry(name, (len(data),), "U8", file, data) for name, data in configs.items() if name not in names
    }


def header_mentions(file: Path, names: Iterable[str]) -> bool:
    """Whether the bytes of a header contain all of these names. They are not parsed, so this is fast for other models.

    Raises OSError if the file cannot be read.
    """
    header = header_bytes(file)
    return all(json.dumps(name).encode() in header for name in names)


def header_bytes(file: Path) -> bytes:
    """The bytes of a header; empty if the file has no valid header. Raises OSError."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, os.fstat(opened.fileno()).st_size - 8):
            return b""
        return opened.read(length)


def _instead(file: Path) -> str:
    """An error message for a known kind of file that is not safetensors; empty for an unknown kind."""
    with file.open("rb") as opened:
        start = opened.read(200)
    text = start.lstrip().lower()
    if not start:
        return f"is empty; {AGAIN}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"is a web page, not a weights file; {AGAIN}"
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, not a weights file; run `git lfs pull` in its folder, or download the file itself."
        )
    if text.startswith(b"gguf"):
        return "is a GGUF file, not a safetensors file; download the release's safetensors files."
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle, which can run code and so is not read; download the release's safetensors files."
    return ""


def some(names: list[str]) -> str:
    """Names for a message; if there are many, the first ones."""
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more"
