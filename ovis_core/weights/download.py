"""Fetches a release from the Hugging Face hub or a mirror of it, and checks every file.

A file gets its final name when it is complete and its hash is right, so a download can be stopped or killed at any
time; the next one resumes. Checked files are recorded (`checked_files.py`) and not read again until they change.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
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
from .hub import RepositoryFile
from .hub_cache import cached_copies

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
# Errors of a write may not name a file. A network error has no file and none of these numbers.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
INTERVAL = 0.5  # seconds between reports of progress
BLOCK = 1 << 24  # bytes hashed or copied at once
PAUSES = (0.5, 1.0, 2.0)  # seconds before each new try if no data came


class DownloadError(RuntimeError):
    """A download failed; the message says what to do."""

    __module__ = "builtins"  # ComfyUI shows the module before the name, and the pack's is a long path


class Stopped(Exception):
    """The download was asked to stop."""


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
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise DownloadError(
            f"the package filelock cannot be imported ({_line(error)}); run this with ComfyUI's Python, or install "
            "filelock there."
        ) from error

    by_hand = (
        "or put config.json, model.safetensors.index.json and every model-*.safetensors of "
        f"{repository} into {folder} by hand."
    )
    try:
        try:
            info = hub.model_info(repository, revision)
        except OSError as error:
            if not _is_out_of_reach(error) or recheck or not CheckedFiles(folder).is_complete(repository, revision):
                raise
            logging.warning(
                "Ovis-U1: the hub cannot be reached (%s), so %s is used, which was checked earlier.",
                _line(error),
                folder,
            )
            return folder
        files = list(_wanted(info.get("siblings") or []))
        if not any(file.name.endswith(".safetensors") for file in files):
            raise DownloadError(f"repository: {repository} has no safetensors files; choose another repository.")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0), _reporting(folder, files, report) as say:
            commit = str(info.get("sha") or revision)
            fetcher = _Fetcher(repository, commit, folder, say, stop or threading.Event())
            fetcher.fetch_all(files, nearby, recheck)
            CheckedFiles(folder).set_complete(repository, revision, {file.name for file in files})
    except (DownloadError, Stopped):
        raise
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise DownloadError(
                f"repository: {hub.endpoint()} has no {repository} at {revision}, or it needs a login; check the "
                "name and the revision, or set HF_TOKEN."
            ) from error
        raise DownloadError(
            f"{hub.endpoint()} answered with an error ({_line(error)}); try again later, set HF_ENDPOINT to a mirror "
            f"of the hub, {by_hand}"
        ) from error
    except NotImplementedError as error:
        raise DownloadError(f"{folder} cannot be locked ({_line(error)}); choose a folder on another disk.") from error
    except Timeout as error:
        raise DownloadError(f"another download into {folder} is running; wait until it ends.") from error
    except hub.Offline as error:
        raise DownloadError(
            f"HF_HUB_OFFLINE is set, so nothing is downloaded from {hub.endpoint()}; unset it and restart ComfyUI."
        ) from error
    except (hub.UnusableAnswer, http.client.HTTPException, ValueError) as error:
        raise DownloadError(
            f"{hub.endpoint()} sent an answer that cannot be used ({_line(error)}); run the download again, "
            f"check HF_ENDPOINT, {by_hand}"
        ) from error
    except OSError as error:
        if not isinstance(error, urllib.error.URLError) and (error.filename is not None or error.errno in DISK):
            raise DownloadError(_disk_error(error, folder)) from error
        raise DownloadError(
            f"{hub.endpoint()} cannot be reached ({_line(error)}); check the connection, set HF_ENDPOINT to a mirror "
            f"of the hub, {by_hand}"
        ) from error
    return folder


def _disk_error(error: OSError, folder: Path) -> str:
    """The message for an error of this machine's disk."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else folder
    why = error.strerror or _line(error)
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


class _Fetcher:
    """Downloads the files of one revision into one folder.

    commit  the revision, by its hash
    say     called with the current action, for the user
    """

    def __init__(
        self, repository: str, commit: str, folder: Path, say: Callable[[str], object], stop: threading.Event
    ) -> None:
        self.repository = repository
        self.commit = commit
        self.folder = folder
        self.say = say
        self.stop = stop
        self.checked = CheckedFiles(folder)
        self.xet = hub.xet_client()

    def fetch_all(self, files: Sequence[RepositoryFile], nearby: Sequence[Path], recheck: bool) -> None:
        """Downloads and checks all files."""
        missing = []
        for file in files:
            if self._is_intact(file, recheck):
                self.checked.add(file)
            elif not self._take_copy(file, nearby):
                missing.append(file)
        self._check_free_space(missing)
        for file in missing:
            self.say(f"fetching {file.name}")
            self._fetch(file)
            self.say(f"checking {file.name}")
            self._finish(file)

    def _raise_if_stopped(self) -> None:
        if self.stop.is_set():
            raise Stopped

    def _is_intact(self, file: RepositoryFile, recheck: bool) -> bool:
        """Whether the file exists and has the right hash; another revision's file may have the same size."""
        path = self.folder / file.name
        if path.is_dir():  # reported before anything is downloaded
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not _has_size(self.folder, file):
            return False
        if not recheck and self.checked.has(file):
            return True
        self.say(f"checking {file.name}")
        return self._digest(path, file) == file.digest

    def _take_copy(self, file: RepositoryFile, nearby: Sequence[Path]) -> bool:
        """Links or copies the file from the hub's cache or from a folder nearby; returns whether one has it."""
        places = [*cached_copies(self.repository, file.name, file.digest), *(folder / file.name for folder in nearby)]
        part = self.folder / f"{file.name}.copy.part"
        for place in places:
            try:
                if place.stat().st_size != file.size or place.parent == self.folder:
                    continue
                self.say(f"checking {file.name} in {place.parent}")
                if self._digest(place, file) != file.digest:
                    continue
            except OSError:
                continue  # it cannot be read, so the file is downloaded
            part.unlink(missing_ok=True)
            try:
                os.link(place.resolve(), part)
            except OSError:
                self.say(f"copying {file.name}")
                try:
                    self._copy(place, part)
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
            self._rename(part, file)
            return True
        return False

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as opened, target.open("wb") as sink:
            while block := opened.read(BLOCK):
                self._raise_if_stopped()
                sink.write(block)

    def _digest(self, path: Path, file: RepositoryFile) -> str:
        """The hash of the file at `path`, of the same kind as the hash of `file`."""
        digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % _size(path))
        with path.open("rb") as opened:
            while block := opened.read(BLOCK):
                self._raise_if_stopped()
                digest.update(block)
        return digest.hexdigest()

    def _check_free_space(self, missing: Sequence[RepositoryFile]) -> None:
        needed = sum(file.size - _size(part_of(self.folder, file)) for file in missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DownloadError(
                f"{self.folder}: expected {needed / 1e9:.1f} GB of free disk space, got {free / 1e9:.1f} GB; free some "
                "space and run the download again."
            )

    def _fetch(self, file: RepositoryFile) -> None:
        """Downloads a file, resuming its partial file."""
        part = part_of(self.folder, file)
        if _size(part) > file.size:
            part.unlink()
        url = hub.file_url(self.repository, self.commit, file.name)
        with part.open("ab") as sink:
            if self.xet and len(file.digest) == 64:
                self._fetch_by_xet(url, sink, file)
            pauses = iter(PAUSES)
            while sink.tell() < file.size:
                begun = sink.tell()
                try:
                    for place, block in hub.read(url, begun):
                        self._raise_if_stopped()
                        if place != sink.tell():
                            sink.truncate(place)
                            sink.seek(place)
                        sink.write(block)
                    if sink.tell() >= file.size:
                        break
                    raise ConnectionError("the connection was closed early")
                except (http.client.HTTPException, OSError) as error:
                    if not _may_pass(error):
                        raise
                    if sink.tell() > begun:
                        pauses = iter(PAUSES)
                    pause = next(pauses, None)
                    if pause is None:
                        raise
                    sink.flush()
                    if self.stop.wait(pause):
                        raise Stopped from error

    def _fetch_by_xet(self, url: str, sink: Any, file: RepositoryFile) -> None:
        """Downloads as much as possible over Xet; plain HTTP gets the rest."""
        try:
            found = hub.xet_file(url)
            if found is None:
                return
            for block in hub.read_by_xet(self.xet, found, file.size, sink.tell(), self.stop):
                self._raise_if_stopped()
                try:
                    sink.write(block)
                except OSError as error:
                    raise _DiskError(error) from error
        except _DiskError as error:
            raise error.args[0] from None
        except Stopped:
            raise
        except Exception as error:  # the client raises many kinds of errors
            self._raise_if_stopped()
            logging.warning(
                "Ovis-U1: the download of %s over Xet failed (%s) and continues over HTTP.", file.name, _line(error)
            )
        self._raise_if_stopped()

    def _finish(self, file: RepositoryFile) -> None:
        """Checks a complete partial file and gives it its final name."""
        part = part_of(self.folder, file)
        if _size(part) != file.size or self._digest(part, file) != file.digest:
            part.unlink(missing_ok=True)
            raise DownloadError(f"{self.folder / file.name} arrived damaged and was deleted; run the download again.")
        self._rename(part, file)

    def _rename(self, part: Path, file: RepositoryFile) -> None:
        """Gives a checked partial file its final name."""
        self.checked.set_incomplete()
        part.replace(self.folder / file.name)
        self.checked.add(file)


class _DiskError(Exception):
    """An OSError of this machine's disk, wrapped so that the handler of the client's errors does not ignore it."""


def _may_pass(error: Exception) -> bool:
    """Whether this is a network error after which another try can succeed."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    if isinstance(error, urllib.error.URLError | http.client.HTTPException):
        return True
    return isinstance(error, OSError) and error.filename is None and error.errno not in DISK


def _is_out_of_reach(error: OSError) -> bool:
    return not isinstance(error, urllib.error.HTTPError) or error.code >= 500


def _has_size(folder: Path, file: RepositoryFile) -> bool:
    """Whether the file exists and has its full size."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


def part_of(folder: Path, file: RepositoryFile) -> Path:
    """The path of a file while it is incomplete; it differs for each revision of the file."""
    return folder / f"{file.name}.{file.digest[:8]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


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
            done = sum(file.size if _has_size(folder, file) else _size(part_of(folder, file)) for file in files)
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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
