"""A record, kept in a folder, of which of its files were checked."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .hub import RepositoryFile

RECORD = ".checked"
COMPLETE = ""  # key in the record of the repository and revision that is complete


class CheckedFiles:
    """Name -> size, time of change and hash of each checked file. A file that has changed since counts as unchecked.

    If the record cannot be written, files are checked again the next time.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._record = folder / RECORD

    def has(self, file: RepositoryFile) -> bool:
        """Whether the file was checked and has this content. Raises OSError if it does not exist."""
        return self._read().get(file.name) == self._state(file.name, file.digest)

    def add(self, file: RepositoryFile) -> None:
        """Records that the file was checked."""
        if not self.has(file):
            self._write(self._read() | {file.name: self._state(file.name, file.digest)})

    def is_complete(self, repository: str, revision: str) -> bool:
        """Whether every file of this revision is there, and none has changed since it was checked."""
        record = self._read()
        if record.pop(COMPLETE, None) != [repository, revision] or not record:
            return False
        try:
            return all(
                isinstance(state, list) and state[:2] == self._state(name, "")[:2] for name, state in record.items()
            )
        except OSError:
            return False

    def set_complete(self, repository: str, revision: str, names: Container[str]) -> None:
        """Records that this revision is complete and consists of the files with these names."""
        record = {name: state for name, state in self._read().items() if name in names}
        self._write(record | {COMPLETE: [repository, revision]})

    def set_incomplete(self) -> None:
        """Records that the folder may contain files of two revisions. Removes the record if it cannot be written."""
        record = self._read()
        if COMPLETE in record:
            self._write({name: state for name, state in record.items() if name != COMPLETE})
            if COMPLETE in self._read():
                self._record.unlink()

    def _state(self, name: str, digest: str) -> list[Any]:
        status = (self._folder / name).stat()
        return [status.st_size, status.st_mtime_ns, digest]

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, record: Mapping[str, Any]) -> None:
        part = self._record.with_name(f"{RECORD}.part")
        with suppress(OSError):
            part.write_text(json.dumps(record), encoding="utf-8")
            part.replace(self._record)
