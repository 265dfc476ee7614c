"""The Hugging Face hub's cache on this machine, read without its client."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

REPOSITORY_FOLDER = "models--"


def hub_home() -> Path:
    """The hub client's home folder, from its environment variables."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(os.environ.get("HF_HOME") or f"{home}/huggingface")


def hub_cache() -> Path:
    """The hub's cache folder, from its environment variables."""
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(folder) if folder else hub_home() / "hub"


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def cached_repositories() -> dict[str, Path]:
    """Name of a cached repository of models, as owner/name -> its folder in the cache."""
    try:
        folders = sorted(path for path in hub_cache().iterdir() if path.name.startswith(REPOSITORY_FOLDER))
    except OSError:
        return {}
    return {path.name.removeprefix(REPOSITORY_FOLDER).replace("--", "/"): path for path in folders}


def snapshots(folder: Path) -> list[Path]:
    """The revisions of a cached repository, that of its main branch first."""
    try:
        found = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
    except OSError:
        return []
    if len(found) < 2:
        return found
    try:
        main = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = ""
    return sorted(found, key=lambda path: path.name != main)


def cached_copies(repository: str, name: str, digest: str) -> Iterator[Path]:
    """Paths in the cache that may have a file of a repository.

    digest  as `hub.RepositoryFile.digest`; the cache names files by it
    """
    folder = hub_cache() / f"{REPOSITORY_FOLDER}{repository.replace('/', '--')}"
    yield folder / "blobs" / digest
    # On systems without links the files are in the snapshots themselves.
    yield from (snapshot / name for snapshot in snapshots(folder))
