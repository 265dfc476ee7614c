"""One safetensors file: its header, or why it is none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

AGAIN = "Delete it and download it again."
LONGEST_HEADER = 100_000_000  # bytes; safetensors reads none that is longer


class CheckpointError(ValueError):
    """A model that cannot be used, with what to do about it."""

    __module__ = "builtins"  # ComfyUI shows the module before the name, and the pack's is a long path


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, from the header alone.

    Raises `CheckpointError` that says what the file is instead.
    """
    try:
        with safe_open(file, framework="np") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file} {_instead(file) or f'is damaged or not complete ({error}). {AGAIN}'}") from error
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} does not exist.") from error
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror or error}); check its permissions.") from error


def header_mentions(file: Path, names: Iterable[str]) -> bool:
    """Whether the bytes of a header hold all of these names. Nothing is parsed, so it is fast for other models' files.

    Raises OSError where the file cannot be read.
    """
    header = read_header(file)
    return all(json.dumps(name).encode() in header for name in names)


def read_header(file: Path) -> bytes:
    """The bytes of a header; empty for a file that cannot have one. Raises OSError."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 2 <= length <= min(LONGEST_HEADER, os.fstat(opened.fileno()).st_size - 8):
            return b""
        return opened.read(length)


def read_carried(file: Path, name: str) -> bytes | None:
    """Bytes that travel with the weights as the tensor `name`; None where there is none."""
    with safe_open(file, framework="np") as tensors:
        # A file handle, not a dict.
        return tensors.get_tensor(name).tobytes() if name in tensors.keys() else None  # noqa: SIM118


def _instead(file: Path) -> str:
    """What a file that is no safetensors file is, and what to do; empty where nobody knows."""
    with file.open("rb") as opened:
        start = opened.read(200)
    text = start.lstrip().lower()
    if not start:
        return f"is empty. {AGAIN}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"is a web page, not a weights file: the site answered with it instead of the file. {AGAIN}"
    if text.startswith(b"version https://git-lfs"):
        return (
            "is a Git LFS pointer, not a weights file. Run `git lfs pull` in its folder, or download the file itself."
        )
    if text.startswith(b"gguf"):
        return "is a GGUF file. Ovis-U1 is read from the release's own safetensors files."
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle, which can run code when it is read, so it is not read. Download the safetensors files."
    return ""
