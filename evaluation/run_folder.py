"""A run's folder, which one run at a time writes to and a later run resumes; and the identity of a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import workspace
from console import UserError
from record import sha256

RUN, RESULTS, LOCK, PARTIAL = "run.json", "results.jsonl", ".lock", ".partial"
WEIGHTS = (".safetensors", ".json", ".txt")  # the files of a release that are read

Result = Mapping[str, Any]
"""A record's result: id, seconds, and error or input_sha256, files (name -> SHA-256), seeds, answer, probabilities."""


@contextmanager
def open_run(path: Path, made_of: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Begins a run in a folder, or resumes the run in it. Raises UserError if it cannot."""
    with _writing(path, "name another folder for --out."):
        path.mkdir(parents=True, exist_ok=True)
        (path / LOCK).touch()
    try:
        with FileLock(path / LOCK, timeout=0):
            yield RunFolder(path, made_of)
    except Timeout as error:
        raise UserError(f"--out: another run is writing to {path}; wait for it, or choose another folder.") from error


class RunFolder:
    """A locked folder: run.json has the run's settings and identity, results.jsonl a line for each result."""

    def __init__(self, path: Path, made_of: Mapping[str, Any]) -> None:
        self.path, self.made_of = path, made_of
        self.results: dict[str, Result] = {}
        run, log = path / RUN, path / RESULTS
        # A run that was killed at its start leaves the lock and the partial file.
        if not run.is_file() and any(file.name not in (LOCK, PARTIAL) for file in path.iterdir()):
            raise UserError(f"--out: {path} is not empty and has no {RUN}; choose another folder.")
        data = log.read_bytes() if log.is_file() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for result in map(json.loads, whole.splitlines()):
            self.results[result["id"]] = result
        if differs := self.results and difference(json.loads(run.read_bytes()), made_of):
            raise UserError(f"--out: {path} has a run with other settings ({differs}); choose another folder.")
        if len(whole) < len(data):  # the last line was cut off
            os.truncate(log, len(whole))
        text = json.dumps(made_of, indent=2).encode()
        if not run.is_file() or run.read_bytes() != text:
            self.write(RUN, text)

    def is_whole(self, result: Result) -> bool:
        """Whether all files of a result are unchanged."""
        try:
            return all(sha256((self.path / name).read_bytes()) == own for name, own in result["files"].items())
        except OSError:
            return False

    def keep(self, result: Result, files: Mapping[str, bytes]) -> None:
        """Writes a result: its files, then its line. Raises UserError if writing fails."""
        for name, data in files.items():
            self.write(name, data)
        result = {**result, "files": {name: sha256(data) for name, data in files.items()}}
        with _writing(self.path / RESULTS), (self.path / RESULTS).open("ab") as log:
            log.write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
            log.flush()
            os.fsync(log.fileno())
        self.results[result["id"]] = result

    def write(self, name: str, data: bytes) -> None:
        """Writes a file of this folder in one step. Raises UserError if writing fails."""
        file, partial = self.path / name, self.path / PARTIAL
        with _writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as sink:
                    sink.write(data)
                    sink.flush()
                    os.fsync(sink.fileno())  # on the disk before the line that names it
                partial.replace(file)
            finally:
                partial.unlink(missing_ok=True)

    def need_only(self, ids: Collection[str]) -> None:
        """Raises UserError if the folder has a record with another id, because scorers would read its files."""
        if others := sorted(name for name, result in self.results.items() if name not in ids and "error" not in result):
            raise UserError(f"--out: record {others[0]!r} in {self.path} is not in --data; choose another folder.")


@contextmanager
def _writing(file: Path, remedy: str = "check the disk and start again, which resumes the run.") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}); {remedy}") from error


def identity(comfyui: Path, model: Path) -> dict[str, str]:
    """Versions and hashes of everything that images depend on, including the pack's code."""
    project = (workspace.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    code = sorted(file for folder in ("nodes", "ovis_core") for file in (workspace.ROOT / folder).rglob("*.py"))
    weights = [model] if model.is_file() else sorted(file for file in model.glob("*") if file.suffix in WEIGHTS)
    return {
        "ovis-u1": next(line.split('"')[1] for line in project.splitlines() if line.startswith("version =")),
        "code": _hash(code),
        "weights": _hash(weights),
        "ComfyUI": workspace.describe_comfyui(comfyui, "").version,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def _hash(files: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as source:
            while chunk := source.read(1 << 24):
                total.update(chunk)
    return total.hexdigest()


def difference(before: Any, now: Any, name: str = "") -> str:
    """The first difference between two runs, as text; empty if they are the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        inner = (difference(before.get(key), now.get(key), f"{name}.{key}".lstrip(".")) for key in keys)
        return next(filter(None, inner), "")
    return "" if before == now else f"{name} is {now!r} and was {before!r}"
