"""Hashes and versions of what results follow from, and how two runs differ."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import workspace

CHUNK = 1 << 24
CODE = ("nodes", "ovis_core")
HASH = "_sha256"
WEIGHTS = (".safetensors", ".json", ".txt")  # what of a release is read


def versions(comfyui: Path) -> dict[str, str]:
    """Of the parts that images depend on; of the pack also its code, which changes between versions."""
    project = (workspace.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pack = next(line for line in project.splitlines() if line.startswith("version ="))
    code = files_hash(sorted(file for folder in CODE for file in (workspace.ROOT / folder).rglob("*.py")))
    return {
        "ovis-u1": pack.split('"')[1] + f", code {code[:12]}",
        "ComfyUI": workspace.describe_comfyui(comfyui, "").version,
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def weights_hash(model: Path) -> str:
    """SHA-256 over a release's files, or of the one file."""
    if model.is_file():
        return files_hash([model])
    return files_hash(sorted(file for file in model.iterdir() if file.suffix in WEIGHTS))


def sha256(data: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def files_hash(files: Iterable[Path]) -> str:
    """SHA-256 over files, of which each counts with its name."""
    total = hashlib.sha256()
    for file in files:
        own = hashlib.sha256()
        with file.open("rb") as source:
            while chunk := source.read(CHUNK):
                own.update(chunk)
        total.update(f"{own.hexdigest()}  {file.name}\n".encode())
    return total.hexdigest()


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first thing in which two runs differ, for a message; empty where they are the same."""
    old, new = (dict(_flat(json.loads(json.dumps(run)))) for run in (before, now))
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            if name.endswith(HASH):
                return f"its {name.removesuffix(HASH)} are not what they were"
            return f"{name} is {new.get(name)!r} and was {old.get(name)!r}"
    return ""


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield prefix + key, item
