"""A small model in the pack's folder, if its file is there, for trying the nodes without the real weights.

One file with all parts, compressed. It is unpacked when it is first used.
"""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .safetensors_file import CheckpointError

SHORT_NAME = "ovis-u1-shapes"
NAME = f"{SHORT_NAME} (built in)"
FILE = Path(__file__).resolve().parents[2] / "small_model" / "ovis-u1-shapes.safetensors.xz"
SIDE = 128  # pixels of the images that it was trained on
DRAWS = "one circle, square or triangle in one of eight colours on a plain background"
STEPS = 20  # enough for it

CHUNK = 1 << 20  # bytes

_lock = threading.Lock()
_unpacked: dict[Path, tuple[int, int]] = {}  # file -> its size and time when it was checked


def is_there() -> bool:
    """Whether this copy of the pack has the model."""
    return FILE.is_file()


def fingerprint() -> str:
    """Changes when the file does."""
    status = FILE.stat()
    return repr((NAME, status.st_size, status.st_mtime_ns))


def unpack(folder: Path) -> Path:
    """Writes the model as a safetensors file into `folder`, which is made if it is missing, and returns the file.

    A file that is there already is used if it has the same bytes; otherwise it is replaced in one step, so that
    several threads and processes can do this at once.

    Raises `CheckpointError` if the packed file is damaged, or if `folder` cannot be written to.
    """
    target = folder / FILE.name.removesuffix(".xz")
    with _lock:
        if target not in _unpacked or _unpacked[target] != _state(target):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _write(target)
            except (lzma.LZMAError, EOFError) as error:
                raise CheckpointError(f"{FILE} is damaged ({error}); install the pack again.") from error
            except OSError as error:
                raise CheckpointError(
                    f"{error.filename or target} cannot be written ({error.strerror or error}); check the free space "
                    f"and the permissions of {folder}."
                ) from error
            state = _state(target)
            if state is not None:
                _unpacked[target] = state
    return target


def _state(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _write(target: Path) -> None:
    handle, name = tempfile.mkstemp(suffix=".part", dir=target.parent)
    part = Path(name)
    try:
        written = hashlib.sha256()
        with os.fdopen(handle, "wb") as sink, lzma.open(FILE) as source:
            for chunk in _chunks(source):
                written.update(chunk)
                sink.write(chunk)
        # Windows does not replace a file that another process has open.
        if not (target.is_file() and _sha256(target) == written.digest()):
            part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _sha256(file: Path) -> bytes:
    found = hashlib.sha256()
    with file.open("rb") as source:
        for chunk in _chunks(source):
            found.update(chunk)
    return found.digest()


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(CHUNK):
        yield chunk
