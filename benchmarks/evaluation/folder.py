"""A run's folder: one run at a time writes to it, each file is whole, and a run goes on where it was."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from console import UserError

from .fingerprint import difference, sha256
from .rows import json_object, json_value

RUN, RESULTS, LOCK, PARTIAL = "run.json", "results.jsonl", ".lock", ".partial"

Result = Mapping[str, Any]
"""What came of a record: id, seconds, and error, or asked, files (name -> SHA-256), seeds, answer, chances."""


class RunFolder:
    """A context manager: it holds the folder's lock.

    run.json       what the run is made of
    results.jsonl  a line for each record, in the order in which they ended; of several the last counts
    """

    def __init__(self, path: Path, made_of: Mapping[str, Any]) -> None:
        """Begins a run, or goes on with one that is made of the same."""
        self.path = path
        self.made_of = made_of
        self.results: dict[str, Result] = {}

    def __enter__(self) -> RunFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / LOCK, timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"--out: another run is writing to {self.path}; wait for it, or name another folder"
            ) from error
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._begin()
        except OSError as error:
            self._lock.release()
            raise self._unusable(error) from error
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._log.close()
        self._lock.release()

    def _begin(self) -> None:
        file = self.path / RUN
        new = not file.is_file()
        # A run that was killed as it began leaves these two.
        if new and any(path.name != LOCK and not path.name.endswith(PARTIAL) for path in self.path.iterdir()):
            raise UserError(f"--out: {self.path} is not empty and holds no run; name another folder")
        differs = "" if new else difference(self._before(file), self.made_of)
        if differs and self._has_results():
            raise UserError(f"--out: {self.path} holds a run that is made otherwise ({differs}); name another folder")
        if new or differs:  # one that has come to nothing yet may begin as another
            self.write(RUN, json.dumps(self.made_of, indent=2).encode())
        self._log = (self.path / RESULTS).open("ab+")
        try:
            self._read_log()
        except BaseException:
            self._log.close()
            raise

    def _before(self, file: Path) -> dict[str, Any]:
        try:
            return json_object(json_value(file.read_bytes()))
        except ValueError as error:
            if not self._has_results():
                return {}
            raise UserError(f"--out: {file} is damaged: {error}, or name another folder") from error

    def _has_results(self) -> bool:
        log = self.path / RESULTS
        return log.is_file() and log.stat().st_size > 0

    def _read_log(self) -> None:
        """Takes in the lines so far; what was cut off in the middle of a line is cut off whole."""
        self._log.seek(0)
        end = 0
        for number, line in enumerate(self._log, 1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                result = json_object(json_value(line))
                kinds = {"id": str, "seconds": int | float, "files": dict}
                if not all(isinstance(result[key], kind) for key, kind in kinds.items()):
                    raise ValueError("it is no result")
            except (ValueError, KeyError) as error:
                raise UserError(
                    f"--out: {self.path / RESULTS}, line {number} is damaged; delete that line, and what it told is "
                    "made again"
                ) from error
            self.results[result["id"]] = result
        self._log.truncate(end)

    def need_only(self, ids: Collection[str]) -> None:
        """Raises UserError where it holds what came of another record than these."""
        other = next((name for name, result in self.results.items() if name not in ids and "error" not in result), None)
        if other is not None:
            raise UserError(f"--out: {self.path} holds record {other!r}, which --data has not; name another folder")

    def is_whole(self, result: Result) -> bool:
        """Whether all files of a result are as they were written."""
        try:
            return all(sha256((self.path / name).read_bytes()) == own for name, own in result["files"].items())
        except OSError:
            return False

    def strangers(self) -> Iterator[Path]:
        """Files among the results that are of no record; scorers would read them too."""
        names = {name for result in self.results.values() for name in result["files"]}
        for root in sorted({name.split("/")[0] for name in names}):
            for path in sorted((self.path / root).rglob("*")):
                name = path.relative_to(self.path)
                if path.is_file() and name.as_posix() not in names:
                    yield name

    def keep(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Writes what came of a record: its files, and last of all its line.

        Raises UserError where the disk does not take it; the record then counts as not begun.
        """
        try:
            for name, data in files.items():
                self.write(name, data)
        except UserError:
            for name in files:  # scorers read whatever is there
                with suppress(OSError):
                    (self.path / name).unlink(missing_ok=True)
            raise
        result = {**result, "files": {name: sha256(data) for name, data in files.items()}}
        end = self._log.seek(0, os.SEEK_END)
        try:
            self._log.write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            os.ftruncate(self._log.fileno(), end)
            raise self._unwritable(self.path / RESULTS, error) from error
        self.results[result["id"]] = result

    def write(self, name: str, data: bytes) -> None:
        """Writes a file of this folder in one step. Raises UserError where the disk does not take it."""
        file, partial = self.path / name, self.path / PARTIAL
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as sink:
                sink.write(data)
                sink.flush()
                os.fsync(sink.fileno())  # its line must never be on the disk before it
            partial.replace(file)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise self._unwritable(file, error) from error

    def _unusable(self, error: OSError) -> UserError:
        return UserError(f"--out: {self.path} cannot be used ({error.strerror or error}); name another folder")

    def _unwritable(self, file: Path, error: OSError) -> UserError:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.strerror
        return UserError(f"{file} cannot be written: {what}; see to it and start again, the run goes on where it was")
