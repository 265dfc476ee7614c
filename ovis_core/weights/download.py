"""Fetches a release from the Hugging Face hub or a mirror of it, and checks what came.

A file carries its name only when it is whole and its hash is right, so a download may be stopped, or its process ended,
at any moment; the next one resumes. What was checked is recorded beside the files and not read again until it changes.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import threading
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import hub
from .hub_cache import cached_copies

REPOSITORY = "AIDC-AI/Ovis-U1-3B"
NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)  # of a repository
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
CHECKED = ".checked"  # the record of what was checked: name -> size, time and hash
ALL_OF = ""  # in it: the repository and revision that are there as a whole
# What a write ends with, without naming its file; an error of the network has neither of these numbers nor a file.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
INTERVAL = 0.5  # seconds from one report of progress to the next
BLOCK = 1 << 24  # bytes hashed or copied at once
PAUSES = (0.5, 1.0, 2.0)  # seconds before another try where nothing came


class DownloadError(RuntimeError):
    """A download that did not finish, with what to do about it."""

    __module__ = "builtins"  # ComfyUI shows the module before the name, and the pack's is a long path


class Stopped(Exception):
    """The download was asked to stop."""


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
    repository: str,
    folder: Path,
    revision: str = "main",
    report: Callable[[Progress], object] = lambda _: None,
    stop: threading.Event | None = None,
    nearby: Sequence[Path] = (),
    recheck: bool = False,
) -> Path:
    """Fetches files that are missing from `folder` or differ, checks sizes and hashes of all, and returns the folder.

    A file that the hub's cache or a folder of `nearby` holds is linked, or copied, once its hash is found right.

    report  called in another thread, or in this one, never in both at once
    stop    ends it between two blocks, with `Stopped`
    nearby  other folders that may hold the same files
    recheck check every file again, even one that was checked before

    Raises `DownloadError`.
    """
    if not NAME.fullmatch(repository):
        raise DownloadError(f"repository: {repository!r} is not the name of a repository; write it as owner/name.")
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise DownloadError(
            f"filelock cannot be imported ({_line(error)}); run this with ComfyUI's Python, or install it there."
        ) from error

    by_hand = (
        "if the hub is blocked, set HF_ENDPOINT to a mirror of it, or put config.json, model.safetensors.index.json "
        f"and every model-*.safetensors of {repository} into {folder} by hand."
    )
    try:
        try:
            info = hub.model_info(repository, revision)
        except OSError as error:
            if not _is_out_of_reach(error) or recheck or not _is_whole(folder, repository, revision):
                raise
            logging.warning(
                "Ovis-U1: the hub cannot be reached (%s); using %s, which was checked before", _line(error), folder
            )
            return folder
        files = list(_wanted(info.get("siblings") or []))
        if not any(file.name.endswith(".safetensors") for file in files):
            raise DownloadError(f"repository: {repository} holds no safetensors files; choose another one.")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0), _reporting(folder, files, report) as doing:
            run = _Run(repository, revision, str(info.get("sha") or revision), folder, doing, stop or threading.Event())
            run.bring(files, nearby, recheck)
    except (DownloadError, Stopped):
        raise
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 404):
            raise DownloadError(
                f"repository: {hub.endpoint()} has no {repository} at {revision}, or it needs a login; check the "
                "name and the revision, or set HF_TOKEN."
            ) from error
        raise DownloadError(f"{hub.endpoint()} answered with an error ({_line(error)}); {by_hand}") from error
    except NotImplementedError as error:
        raise DownloadError(f"{folder} cannot be locked ({_line(error)}); choose a folder on another disk.") from error
    except Timeout as error:
        raise DownloadError(f"another download into {folder} is running; wait for it.") from error
    except hub.Offline as error:
        raise DownloadError(
            f"{hub.endpoint()} is not asked because HF_HUB_OFFLINE is set; unset it and restart ComfyUI."
        ) from error
    except OSError as error:
        if not isinstance(error, urllib.error.URLError) and (error.filename is not None or error.errno in DISK):
            raise DownloadError(_local(error, folder)) from error
        raise DownloadError(f"{hub.endpoint()} cannot be reached ({_line(error)}); {by_hand}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{hub.endpoint()} cannot be reached ({_line(error)}); {by_hand}") from error
    return folder


def _local(error: OSError, folder: Path) -> str:
    """What is wrong on this machine, where, and what to do."""
    path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else folder
    why = error.strerror or _line(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {path} is full ({why}); free some space and run it again; it resumes."
    if error.errno == errno.EFBIG:
        return f"the file system of {path} does not take a file of that size ({why}); choose a folder on another disk."
    if isinstance(error, IsADirectoryError):
        return f"{path} is a folder where a file belongs; move it away and run it again."
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        file = next((place for place in (path, *path.parents) if place.is_file()), path)
        return f"{file} is a file where a folder belongs; move it away and run it again."
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return f"{path} cannot be read or written ({why}); check its permissions, or choose another folder."
    return f"{path} cannot be read or written ({why}); check its disk, or choose another folder."


def _wanted(siblings: list[Any]) -> Iterator[File]:
    for sibling in siblings:
        name = sibling.get("rfilename") if isinstance(sibling, dict) else None
        if isinstance(name, str) and Path(name).name == name and any(fnmatch(name, pattern) for pattern in WANTED):
            large = sibling.get("lfs")
            sha256 = large.get("sha256") if isinstance(large, dict) else None
            yield File(name, int(sibling.get("size") or 0), str(sha256 or sibling.get("blobId") or ""))


class _Run:
    """One download into one folder."""

    def __init__(
        self,
        repository: str,
        asked: str,
        revision: str,
        folder: Path,
        doing: Callable[[str], object],
        stop: threading.Event,
    ) -> None:
        """asked: the name of a revision; revision: the commit that it is."""
        self.repository = repository
        self.asked = asked
        self.revision = revision
        self.folder = folder
        self.doing = doing
        self.stop = stop
        self.client = hub.xet_client()

    def bring(self, files: Sequence[File], nearby: Sequence[Path], recheck: bool) -> None:
        """Has all files in the folder, checked."""
        checked = {} if recheck else _read_checked(self.folder)
        missing = []
        for file in files:
            if self._is_right(file, checked):
                self._note(file)
            elif not self._take_copy(file, nearby):
                missing.append(file)
        self._need_room(missing)
        for file in missing:
            self.doing(f"fetching {file.name}")
            self._fetch(file)
            self.doing(f"checking {file.name}")
            self._take(file)
        names = {file.name for file in files}
        checked = {name: state for name, state in _read_checked(self.folder).items() if name in names}
        _write_checked(self.folder, checked | {ALL_OF: [self.repository, self.asked]})

    def go_on(self) -> None:
        """Raises `Stopped` when it was asked to stop."""
        if self.stop.is_set():
            raise Stopped

    def _is_right(self, file: File, checked: dict[str, Any]) -> bool:
        """Whether the file is there, byte for byte: another revision's may have the same size."""
        path = self.folder / file.name
        if path.is_dir():  # said before anything is fetched
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not _is_there(self.folder, file):
            return False
        if checked.get(file.name) == _state(path, file):
            return True
        self.doing(f"checking {file.name}")
        return self._digest(path, file) == file.digest

    def _take_copy(self, file: File, nearby: Sequence[Path]) -> bool:
        """Links or copies the file from the hub's cache or from a folder nearby; whether one holds it."""
        places = [*cached_copies(self.repository, file.name, file.digest), *(folder / file.name for folder in nearby)]
        part = self.folder / f"{file.name}.copy.part"
        for place in places:
            try:
                if place.stat().st_size != file.size or place.parent == self.folder:
                    continue
                self.doing(f"checking {file.name} in {place.parent}")
                if self._digest(place, file) != file.digest:
                    continue
            except OSError:
                continue  # what is there cannot be read, so it is fetched
            part.unlink(missing_ok=True)
            try:
                os.link(place.resolve(), part)
            except OSError:
                self.doing(f"copying {file.name}")
                try:
                    self._copy(place, part)
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
            self._put(part, file)
            return True
        return False

    def _copy(self, source: Path, target: Path) -> None:
        with source.open("rb") as opened, target.open("wb") as sink:
            while block := opened.read(BLOCK):
                self.go_on()
                sink.write(block)

    def _digest(self, path: Path, file: File) -> str:
        """The hash of what is at `path`, of the kind that `file` has."""
        digest = hashlib.sha256() if len(file.digest) == 64 else hashlib.sha1(b"blob %d\0" % _size(path))
        with path.open("rb") as opened:
            while block := opened.read(BLOCK):
                self.go_on()
                digest.update(block)
        return digest.hexdigest()

    def _need_room(self, missing: Sequence[File]) -> None:
        needed = sum(file.size - _size(_part(self.folder, file)) for file in missing)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DownloadError(
                f"the disk of {self.folder} has {free / 1e9:.1f} GB free and the download needs "
                f"{needed / 1e9:.1f} GB more; free some space and run it again."
            )

    def _fetch(self, file: File) -> None:
        """Resumes a file's part."""
        part = _part(self.folder, file)
        if _size(part) > file.size:
            part.unlink()
        url = hub.file_url(self.repository, self.revision, file.name)
        with part.open("ab") as sink:
            if self.client and len(file.digest) == 64:
                self._fetch_by_xet(url, sink, file)
            pauses = iter(PAUSES)
            while sink.tell() < file.size:
                begun = sink.tell()
                try:
                    for place, block in hub.read(url, begun):
                        self.go_on()
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

    def _fetch_by_xet(self, url: str, sink: Any, file: File) -> None:
        """As much as comes this way; the rest is left to plain HTTP."""
        try:
            found = hub.xet_file(url)
            if found is None:
                return
            for block in hub.read_by_xet(self.client, found, file.size, sink.tell(), self.stop):
                self.go_on()
                try:
                    sink.write(block)
                except OSError as error:
                    raise _Local(error) from error
        except _Local as error:
            raise error.args[0] from None
        except Stopped:
            raise
        except Exception as error:  # the client has errors of many kinds
            self.go_on()
            logging.warning(
                "Ovis-U1: Xet stopped at %s (%s); the download continues over HTTP", file.name, _line(error)
            )
        self.go_on()

    def _take(self, file: File) -> None:
        """Checks a whole part and gives it its name."""
        part = _part(self.folder, file)
        if _size(part) != file.size or self._digest(part, file) != file.digest:
            part.unlink(missing_ok=True)
            raise DownloadError(f"{self.folder / file.name} arrived damaged and was deleted; run the download again.")
        self._put(part, file)

    def _put(self, part: Path, file: File) -> None:
        """Gives a checked part its name; from then on the folder may hold files of two revisions."""
        _drop_all_of(self.folder)
        part.replace(self.folder / file.name)
        self._note(file)

    def _note(self, file: File) -> None:
        """Records that a file was checked."""
        checked = _read_checked(self.folder)
        state = _state(self.folder / file.name, file)
        if checked.get(file.name) == state:
            return
        checked[file.name] = state
        _write_checked(self.folder, checked)


class _Local(Exception):
    """An OSError from this machine's disk, raised through a handler that ignores the client's errors."""


def _may_pass(error: Exception) -> bool:
    """Whether an error is the network's and another try may do."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    if isinstance(error, urllib.error.URLError | http.client.HTTPException):
        return True
    return isinstance(error, OSError) and error.filename is None and error.errno not in DISK


def _read_checked(folder: Path) -> dict[str, Any]:
    """Name -> `_state` of what was checked."""
    try:
        found = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _write_checked(folder: Path, checked: Mapping[str, Any]) -> None:
    part = folder / f"{CHECKED}.part"
    with suppress(OSError):  # then it is read again the next time
        part.write_text(json.dumps(checked), encoding="utf-8")
        part.replace(folder / CHECKED)


def _drop_all_of(folder: Path) -> None:
    """Removes the mark of a whole revision from the record, or the record if it cannot be written."""
    checked = _read_checked(folder)
    if ALL_OF in checked:
        _write_checked(folder, {name: state for name, state in checked.items() if name != ALL_OF})
        if ALL_OF in _read_checked(folder):
            (folder / CHECKED).unlink()


def _is_whole(folder: Path, repository: str, revision: str) -> bool:
    """Whether a folder holds all of this revision, and nothing has changed since it was checked."""
    checked = _read_checked(folder)
    if checked.pop(ALL_OF, None) != [repository, revision] or not checked:
        return False
    try:
        return all(
            isinstance(state, list) and state[:2] == _state(folder / name, File(name, 0, ""))[:2]
            for name, state in checked.items()
        )
    except OSError:
        return False


def _is_out_of_reach(error: OSError) -> bool:
    return not isinstance(error, urllib.error.HTTPError) or error.code >= 500


def _state(path: Path, file: File) -> list[Any]:
    """A file as it is now, and the hash that it was found to have."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, file.digest]


def _is_there(folder: Path, file: File) -> bool:
    path = folder / file.name
    return path.is_file() and path.stat().st_size == file.size


def _part(folder: Path, file: File) -> Path:
    """Where a file is while it is not whole; another one for each revision of it."""
    return folder / f"{file.name}.{file.digest[:8]}.part"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


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
