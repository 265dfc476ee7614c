"""The only folder outside the checkout that the scripts write to."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from console import Ticker, UserError


def home() -> Path:
    """The cache folder: OVIS_U1_HOME, or `ovis-u1` in the system's cache folder."""
    chosen = os.environ.get("OVIS_U1_HOME")
    if chosen:
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent).resolve() / "ovis-u1"


def _make_home() -> Path:
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the cache folder {folder} cannot be created ({error.strerror})"
        raise UserError(f"{reason}; set OVIS_U1_HOME to another folder.") from error
    return folder


@contextlib.contextmanager
def set_up_lock() -> Iterator[int]:
    """A lock, so that one process at a time does the set-up. The system releases it when the processes that
    have it end, for any reason.
    """
    with (_make_home() / "lock").open("a+b") as file:
        if not _try_lock(file):
            with Ticker("waiting for another process to finish its set-up"):
                while not _try_lock(file):
                    time.sleep(0.5)
        for left in home().glob("tmp-*"):
            remove(left)
        yield file.fileno()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks: continue without one
    return True


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in `home`, to be filled and then renamed. Only for holders of the lock; removes old ones."""
    folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=home()))
    try:
        yield folder
    finally:
        remove(folder)


def remove(path: Path) -> None:
    """Deletes a file, a link (never its target) or a folder; a missing path is not an error."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            path.rmdir()  # also removes a Windows junction without its target
        except OSError:
            shutil.rmtree(path, **{"onexc" if sys.version_info >= (3, 12) else "onerror": _force})


def _force(function: Callable[[str], object], path: str, _info: object) -> None:
    # git marks its objects read-only, and Windows does not delete read-only files.
    Path(path).chmod(0o700)
    function(path)
