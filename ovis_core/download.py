"""Fetches a release from the Hugging Face hub or a mirror of it, and checks what came.

Run as a program it does that in a process of its own, which can be ended at any moment without harm: files carry
their names only when they are whole, and the next run goes on where this one stopped.

    python download.py REPOSITORY FOLDER [--revision NAME]     progress as JSON lines
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

REPOSITORY = "AIDC-AI/Ovis-U1-3B"
# What is fetched of a release; its Python files never are.
WANTED = (
    "config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "vocab.json",
    "merges.txt",
    "tokenizer*.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "generation_config.json",
    "LICENSE*",
    "README.md",
)
LOCK = ".download.lock"
# What a write ends with, without naming its file; an error of the network has neither of these numbers nor a file.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
INTERVAL = 0.5  # seconds from one report of progress to the next


class DownloadError(RuntimeError):
    """A download that did not come to its end, with what to do about it."""


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes there, bytes in all, and what it is at."""

    done: int
    total: int
    doing: str


@dataclass(frozen=True)
class File:
    """A file of the repository.

    digest  its SHA-256 where the hub keeps it apart (LFS), else its blob's SHA-1 as git computes it
    """

    name: str
    size: int
    digest: str


def download(
    repository: str, folder: Path, revision: str = "main", report: Callable[[Progress], object] = lambda _: None
) -> Path:
    """Fetches what is missing or other in `folder`, checks sizes and hashes of all of it, and answers the folder.

    `report` is called in another thread, or in this one, never in both at once.

    Honours the hub's own settings (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). Raises `DownloadError`.
    """
    try:
        import huggingface_hub
        from filelock import FileLock, Timeout
        from huggingface_hub import constants
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise DownloadError(
            f"huggingface_hub cannot be imported ({_line(error)}); install it and filelock with the Python "
            f"that runs this, {sys.executable}."
        ) from error

    by_hand = (
        "Where the hub is blocked, set HF_ENDPOINT to a mirror of it; or put config.json, "
        f"model.safetensors.index.json and every model-*.safetensors of {repository} into {folder} by hand."
    )
    try:
        info = huggingface_hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
        files = list(_wanted(info.siblings or []))
        if not any(file.name.endswith(".safetensors") for file in files):
            raise DownloadError(f"repository: {repository} holds no safetensors files; choose another one.")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0), _reporting(folder, files, report) as doing:
            missing = [file for file in files if not _is_right(folder, file, doing)]
            _need_room(folder, missing)
            for file in missing:
                doing(f"fetching {file.name}")
                _fetch(huggingface_hub.hf_hub_url(repository, file.name, revision=info.sha), folder, file)
                doing(f"checking {file.name}")
                _take(folder, file)
    except DownloadError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DownloadError(
            f"repository: {constants.ENDPOINT} has no {repository} at {revision}, or wants a login for it; check the "
            "name, or set HF_TOKEN."
        ) from error
    except HFValidationError as error:
        raise DownloadError(
            f"repository: {repository!r} is no name of a repository; it looks like owner/name."
        ) from error
    except NotImplementedError as error:
        raise DownloadError(f"{folder} cannot be locked ({_line(error)}); choose a folder on another disk.") from error
    except Timeout as error:
        raise DownloadError(f"another download into {folder} is running; wait for it.") from error
    except HfHubHTTPError as error:
        raise DownloadError(f"{constants.ENDPOINT} answered with an error ({_line(error)}). {by_hand}") from error
    except OSError as error:
        if error.filename is not None or error.errno in DISK:
            raise DownloadError(_local(error, folder)) from error
        raise DownloadError(f"{constants.ENDPOINT} cannot be reached ({_line(error)}). {by_hand}") from error
    except Exception as error:
        # The hub's client changes its HTTP library and its errors from one version to the next.
        raise DownloadError(f"{constants.ENDPOINT} cannot be reached ({_line(error)}). {by_hand}") from error
    return folder


def _local(error: OSError, folder: Path) -> str:
    """What is wrong on this machine, where, and what to do."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else folder
    why = error.strerror or _line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full ({why}); make room and run it again, it goes on."
    if error.errno == errno.EFBIG:
        return f"the file system of {path} takes no file of that size ({why}); choose a folder on another disk."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder where a file belongs; move it away and run it again."
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        file = next((place for place in (path, *path.parents) if place.is_file()), path)
        return f"{file} is a file where a folder belongs; move it away and run it again."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{path} cannot be read or written ({why}); see to its permissions, or choose another folder."
    return f"{path} cannot be read or written ({why}); see to its disk, or choose another folder."


def _wanted(siblings: list[Any]) -> Iterator[File]:
    for sibling in siblings:
        name = sibling.rfilename
        if Path(name).name == name and any(fnmatch(name, pattern) for pattern in WANTED):
            lfs = sibling.lfs
            sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
            yield File(name, sibling.size or 0, sha256 or sibling.blob_id or "")


def _is_there(folder: Path, file: File) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


def _is_right(folder: Path, file: File, doing: Callable[[str], object]) -> bool:
    """Whether the file is there, byte for byte: another revision's may have the same size."""
    if (folder / file.name).is_dir():  # said before anything is fetched
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / file.name))
    if not _is_there(folder, file):
        return False
    doing(f"checking {file.name}")
    return _digest(folder / file.name, file) == file.digest


def _digest(path: Path, file: File) -> str:
    """The hash of what is at `path`, of the kind that `file` has."""
    digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % _size(path))
    with path.open("rb") as opened:
        while block := opened.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _part(folder: Path, file: File) -> Path:
    """Where a file is while it is not whole; another one for each revision of it."""
    return folder / f"{file.name}.{file.digest[:8]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _need_room(folder: Path, missing: list[File]) -> None:
    needed = sum(file.size - _size(_part(folder, file)) for file in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"the disk of {folder} has {free / 1e9:.1f} GB left and {needed / 1e9:.1f} GB are missing; make room."
        )


def _fetch(url: str, folder: Path, file: File) -> None:
    """Goes on with a file's part. `hf_hub_download` begins anew when it was stopped."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = _part(folder, file)
    if _size(part) > file.size:
        part.unlink()
    with part.open("ab") as sink:
        if sink.tell() < file.size or not file.size:
            http_get(url, sink, resume_size=sink.tell(), headers=build_hf_headers(), expected_size=file.size)


def _take(folder: Path, file: File) -> None:
    """Checks a whole part and gives it its name."""
    part = _part(folder, file)
    if _size(part) != file.size or _digest(part, file) != file.digest:
        part.unlink(missing_ok=True)
        raise DownloadError(f"{folder / file.name} came damaged and was deleted; run it again to fetch it anew.")
    part.replace(folder / file.name)


@contextmanager
def _reporting(
    folder: Path, files: list[File], report: Callable[[Progress], object]
) -> Iterator[Callable[[str], None]]:
    """Reports by the sizes on the disk, which are right whatever way the hub's client takes; yields what to say.

    Two threads report, never both at once.
    """
    total, doing, ended, one = sum(file.size for file in files), [""], threading.Event(), threading.Lock()

    def tell() -> None:
        with one:
            done = sum(file.size if _is_there(folder, file) else _size(_part(folder, file)) for file in files)
            report(Progress(done, total, doing[0]))

    def keep_telling() -> None:
        while not ended.wait(INTERVAL):
            tell()

    def say(what: str) -> None:
        doing[0] = what
        tell()

    thread = threading.Thread(target=keep_telling, daemon=True)
    thread.start()
    try:
        yield say
        say("done")
    finally:
        ended.set()
        thread.join()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def main() -> int:
    """Command line; the last line is {"folder": ...} or {"error": ...}."""
    parser = argparse.ArgumentParser(description="Fetch a release of Ovis-U1.")
    parser.add_argument("repository")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--revision", default="main")
    args = parser.parse_args()

    def say(**line: Any) -> None:
        print(json.dumps(line), flush=True)

    try:
        folder = download(args.repository, args.folder, args.revision, lambda progress: say(**asdict(progress)))
    except DownloadError as error:
        say(error=str(error))
        return 1
    say(folder=str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
