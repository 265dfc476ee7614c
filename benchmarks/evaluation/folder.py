"""A run's folder: one run at a time writes to it, each file is whole, and a run goes on where it was."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from workspace import UserError

from .record import Made, Record, read
from .settings import difference

RUN, RESULTS, LOCK, PARTIAL = "run.json", "results.jsonl", ".lock", ".partial"


class RunFolder:
    """A context manager: it holds the folder's lock.

    run.json       what the run is made of
    results.jsonl  one line for each record, in the order in which they ended
    """

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        """Begins a run, or goes on with one that is made of the same."""
        self.path = path
        self.run = run
        self.results: dict[str, dict[str, Any]] = {}

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
            raise UserError(f"--out: {self.path} cannot be written to ({error.strerror or error})") from error
        try:
            self._begin()
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
        if new and any(path.name != LOCK for path in self.path.iterdir()):
            raise UserError(f"--out: {self.path} is not empty and holds no run; name another folder")
        differs = "" if new else difference(json.loads(file.read_text(encoding="utf-8")), self.run)
        if differs and self._has_results():
            raise UserError(f"--out: {self.path} holds a run that is made otherwise ({differs}); name another folder")
        if new or differs:  # one that has come to nothing yet may begin as another
            self.write(RUN, json.dumps(self.run, indent=2).encode())
        self._log = (self.path / RESULTS).open("ab+")
        self._read_log()

    def _has_results(self) -> bool:
        log = self.path / RESULTS
        return log.is_file() and log.stat().st_size > 0

    def _read_log(self) -> None:
        """Takes in the lines so far; what was cut off in the middle of a line is cut off whole."""
        self._log.seek(0)
        end = 0
        for line in self._log:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            result = json.loads(line)
            self.results[result["id"]] = result
        self._log.truncate(end)

    def is_done(self, record: Record, failed_too: bool) -> bool:
        """Whether a record needs no more work: all of its files are there, or it failed and that counts."""
        result = self.results.get(record.id)
        if result is None:
            return False
        if result.get("error"):
            return failed_too
        return all((self.path / name).is_file() for name in (*record.beside, *record.files))

    def keep(self, record: Record, made: Made, seeds: tuple[int, ...]) -> None:
        """Writes what came of a record: its files, and last of all its line.

        Raises UserError where the disk does not take it; the record then counts as not begun.
        """
        result: dict[str, Any] = {"id": record.id, "seconds": round(made.seconds, 3)}
        if made.error:
            result["error"] = made.error
        else:
            for name, source in record.beside.items():
                self.write(name, read(source))
            for name, data in zip(record.files, made.images, strict=True):
                self.write(name, data)
            if made.images:
                result |= {"files": list(record.files), "seeds": list(seeds)}
            if made.text is not None:
                result["answer"] = made.text
            if made.chances:
                result["chances"] = dict(zip(record.choices, (round(c, 6) for c in made.chances), strict=True))
        end = self._log.seek(0, os.SEEK_END)
        try:
            self._log.write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            os.ftruncate(self._log.fileno(), end)
            raise self._unwritable(self.path / RESULTS, error) from error
        self.results[record.id] = result

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

    def _unwritable(self, file: Path, error: OSError) -> UserError:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else error.strerror
        return UserError(f"{file} cannot be written: {what}; see to it and start again, the run goes on where it was")
