"""Fetches the files of one revision of a repository into a folder, from the hub, its cache or other folders.

A file gets its final name when it is complete and its hash is right, so a download can be stopped or killed at any
time; the next one resumes. Checked files are recorded (`checked_files.py`) and not read again until they change.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import os
import shutil
import threading
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import hub
from .checked_files import CheckedFiles
from .hub import RepositoryFile
from .hub_cache import cached_copies

# Errors of a write may not name a file. A network error has no file and none of these numbers.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
BLOCK = 1 << 24  # bytes hashed or copied at once
PAUSES = (0.5, 1.0, 2.0)  # seconds before each new try if no data came


class DownloadError(RuntimeError):
    """A download failed; the message says what to do."""

    __module__ = "builtins"  # ComfyUI shows the module before the name, and the pack's is a long path


class Stopped(Exception):
    """The download was asked to stop."""


class FileFetcher:
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
        if not has_size(self.folder, file):
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
        digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % size_of(path))
        with path.open("rb") as opened:
            while block := opened.read(BLOCK):
                self._raise_if_stopped()
                digest.update(block)
        return digest.hexdigest()

    def _check_free_space(self, missing: Sequence[RepositoryFile]) -> None:
        needed = sum(file.size - size_of(part_of(self.folder, file)) for file in missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DownloadError(
                f"{self.folder}: expected {needed / 1e9:.1f} GB of free disk space, got {free / 1e9:.1f} GB; free some "
                "space and run the download again."
            )

    def _fetch(self, file: RepositoryFile) -> None:
        """Downloads a file, resuming its partial file."""
        part = part_of(self.folder, file)
        if size_of(part) > file.size:
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
                "Ovis-U1: the download of %s over Xet failed (%s) and continues over HTTP.", file.name, one_line(error)
            )
        self._raise_if_stopped()

    def _finish(self, file: RepositoryFile) -> None:
        """Checks a complete partial file and gives it its final name."""
        part = part_of(self.folder, file)
        if size_of(part) != file.size or self._digest(part, file) != file.digest:
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


def has_size(folder: Path, file: RepositoryFile) -> bool:
    """Whether the file exists and has its full size."""
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


def part_of(folder: Path, file: RepositoryFile) -> Path:
    """The path of a file while it is incomplete; it differs for each revision of the file."""
    return folder / f"{file.name}.{file.digest[:8]}.part"


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def one_line(error: BaseException) -> str:
    """An error's text, for a message of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
