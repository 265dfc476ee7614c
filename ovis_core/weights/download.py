"""Downloads a release from the Hugging Face hub or a mirror of it; each error says what to do."""

from __future__ import annotations

import errno
import http.client
import logging
import os
import re
import threading
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import hub
from .checked_files import CheckedFiles
from .file_fetcher import DISK, DownloadError, FileFetcher, has_size, one_line, part_of, size_of
from .hub import RepositoryFile

REPOSITORY = "AIDC-AI/Ovis-U1-3B"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # of a repository
PAGE = re.compile(r"^(https?://)?[^/]*(huggingface\.co|hf-mirror\.com|hf\.co)/", re.ASCII)  # start of its address
# The files of a release that are downloaded. Its Python files never are.
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
INTERVAL = 0.5  # seconds between reports of progress


@dataclass(frozen=True)
class Progress:
    """The progress of a download: bytes done, bytes in total, and the current action."""

    done: int
    total: int
    doing: str


def repository_name(text: str) -> str:
    """The name as owner/name, from that form or from the address of the repository's page. Raises `DownloadError`."""
    name = PAGE.sub("", text.strip()).strip("/")
    if not NAME.fullmatch(name):
        raise DownloadError(f"repository: expected a name such as {REPOSITORY}, got {name!r}; write it as owner/name.")
    return name


def download(
    repository: str,
    folder: Path,
    revision: str = "main",
    report: Callable[[Progress], object] = lambda _: None,
    stop: threading.Event | None = None,
    nearby: Sequence[Path] = (),
    recheck: bool = False,
) -> Path:
    """Downloads files that are missing from `folder` or differ, checks all sizes and hashes; returns the folder.

    A file that is in the hub's cache or in a folder of `nearby` is linked, or copied, if its hash is right.

    report   called in another thread or in this one, never in both at once
    stop     if set, the download ends after its current block, with `Stopped`
    nearby   other folders that may contain the same files
    recheck  check every file again, even those that were checked before

    Raises `DownloadError`.
    """
    repository = repository_name(repository)
    try:
        from filelock import FileLock
    except ImportError as error:
        raise DownloadError(
            f"the package filelock cannot be imported ({one_line(error)}); run this with ComfyUI's Python, or install "
            "filelock there."
        ) from error

    try:
        try:
            info = hub.model_info(repository, revision)
        except OSError as error:
            if not _is_out_of_reach(error) or recheck or not CheckedFiles(folder).is_complete(repository, revision):
                raise
            logging.warning(
                "Ovis-U1: the hub cannot be reached (%s), so %s is used, which was checked earlier.",
                one_line(error),
                folder,
            )
            return folder
        files = list(_wanted(info.get("siblings") or []))
        if not any(file.name.endswith(".safetensors") for file in files):
            raise DownloadError(f"repository: {repository} has no safetensors files; choose another repository.")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0), _reporting(folder, files, report) as say:
            commit = str(info.get("sha") or revision)
            fetcher = FileFetcher(repository, commit, folder, say, stop or threading.Event())
            fetcher.fetch_all(files, nearby, recheck)
            CheckedFiles(folder).set_complete(repository, revision, {file.name for file in files})
    except (OSError, ValueError, NotImplementedError, http.client.HTTPException) as error:
        raise _as_download_error(error, repository, revision, folder) from error
    return folder


def _as_download_error(error: Exception, repository: str, revision: str, folder: Path) -> DownloadError:
    """The error for the user, which says what to do."""
    from filelock import Timeout

    by_hand = (
        "or put config.json, model.safetensors.index.json and every model-*.safetensors of "
        f"{repository} into {folder} by hand."
    )
    if isinstance(error, urllib.error.HTTPError):
        if error.code in (401, 403, 404):
            return DownloadError(
                f"repository: {hub.endpoint()} has no {repository} at {revision}, or it needs a login; check the "
                "name and the revision, or set HF_TOKEN."
            )
        return DownloadError(
            f"{hub.endpoint()} answered with an error ({one_line(error)}); try again later, set HF_ENDPOINT to a "
            f"mirror of the hub, {by_hand}"
        )
    if isinstance(error, NotImplementedError):
        return DownloadError(f"{folder} cannot be locked ({one_line(error)}); choose a folder on another disk.")
    if isinstance(error, Timeout):
        return DownloadError(f"another download into {folder} is running; wait until it ends.")
    if isinstance(error, hub.Offline):
        return DownloadError(
            f"HF_HUB_OFFLINE is set, so nothing is downloaded from {hub.endpoint()}; unset it and restart ComfyUI."
        )
    if isinstance(error, (hub.UnusableAnswer, http.client.HTTPException, ValueError)):
        return DownloadError(
            f"{hub.endpoint()} sent an answer that cannot be used ({one_line(error)}); run the download again, "
            f"check HF_ENDPOINT, {by_hand}"
        )
    if not isinstance(error, urllib.error.URLError) and (error.filename is not None or error.errno in DISK):
        return DownloadError(_disk_error(error, folder))
    return DownloadError(
        f"{hub.endpoint()} cannot be reached ({one_line(error)}); check the connection, set HF_ENDPOINT to a "
        f"mirror of the hub, {by_hand}"
    )


def _disk_error(error: OSError, folder: Path) -> str:
    """The message for an error of this machine's disk."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else folder
    why = error.strerror or one_line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full ({why}); free some space and run the download again, which resumes."
    if error.errno == errno.EFBIG:
        return (
            f"the file system of {path} does not support files of this size ({why}); choose a folder on another disk."
        )
    if isinstance(error, IsADirectoryError):
        return f"{path}: expected a file, got a folder; move it away and run the download again."
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        file = next((place for place in (path, *path.parents) if place.is_file()), path)
        return f"{file}: expected a folder, got a file; move it away and run the download again."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{path} cannot be read or written ({why}); check its permissions, or choose another folder."
    return f"{path} cannot be read or written ({why}); check its disk, or choose another folder."


def _wanted(siblings: list[Any]) -> Iterator[RepositoryFile]:
    for sibling in siblings:
        name = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if isinstance(name, str) and Path(name).name == name and any(fnmatch(name, pattern) for pattern in WANTED):
            large = sibling.get("lfs")
            sha256 = large.get("sha256") if isinstance(large, dict) else None
            yield RepositoryFile(name, int(sibling.get("size") or 0), str(sha256 or sibling.get("blobId") or ""))


def _is_out_of_reach(error: OSError) -> bool:
    return not isinstance(error, urllib.error.HTTPError) or error.code >= 500


@contextmanager
def _reporting(
    folder: Path, files: list[RepositoryFile], report: Callable[[Progress], object]
) -> Iterator[Callable[[str], None]]:
    """Reports sizes on the disk, right for every way of transfer; yields the function that reports the action.

    Two threads report, never both at once.
    """
    total, doing, ended, lock = sum(file.size for file in files), [""], threading.Event(), threading.Lock()

    def send() -> None:
        with lock:
            done = sum(file.size if has_size(folder, file) else size_of(part_of(folder, file)) for file in files)
            report(Progress(done, total, doing[0]))

    def keep_reporting() -> None:
        while not ended.wait(INTERVAL):
            send()

    def say(what: str) -> None:
        doing[0] = what
        send()

    thread = threading.Thread(target=keep_reporting, daemon=True)
    thread.start()
    try:
        yield say
        say("done")
    finally:
        ended.set()
        thread.join()
