"""Finds Ovis-U1 models in ComfyUI's folders and in the hub's cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from stat import S_ISREG

import folder_paths

from ...weights.checkpoint import why_not
from ...weights.hub_cache import REPOSITORY_FOLDER, cached_repositories, hub_cache, snapshots
from ...weights.recognition import is_single_file, names_ovis_u1
from ...weights.release_folder import CONFIG, SINGLE, has_pieces, is_complete, is_release, looks_like_release
from .folders import (
    CHECKPOINTS,
    KIND,
    all_registered,
    changed_at,
    elsewhere,
    is_named_ovis_u1,
    is_shared,
    mentions_ovis,
    registered,
    roots,
    subfolders,
    weights_in,
)

HUB = "huggingface"  # before the names of models in the hub's cache
DEPTH = 3  # levels of folders that are searched inside a folder of models
SHARED_DEPTH = 2

_last: Listing | None = None  # result of the last search
_reported: set[str] = set()  # reasons that are in the log


def _until_changed(answer: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """Caches what a function says about each file until the file changes. It says False if the path is not a file."""
    known: dict[Path, tuple[tuple[int, ...], bool]] = {}  # with size, time and mode of the file

    @wraps(answer)
    def cached(file: Path) -> bool:
        try:
            status = file.stat()
        except OSError:
            return False
        if not S_ISREG(status.st_mode):
            return False
        state = (status.st_size, status.st_mtime_ns, status.st_mode)
        if file not in known or known[file][0] != state:
            known[file] = state, answer(file)
        return known[file][1]

    return cached


@_until_changed
def is_model_file(file: Path) -> bool:
    """`is_single_file`, cached until the file changes."""
    return is_single_file(file)


@_until_changed
def _names_ovis_u1(file: Path) -> bool:
    return names_ovis_u1(file)


@_until_changed
def _is_release_config(config: Path) -> bool:
    return is_release(config.parent)


def _is_release(folder: Path) -> bool:
    return _is_release_config(folder / CONFIG)


def find_models(fresh: bool = False) -> dict[str, Path]:
    """Name shown in the loader -> release folder, or file with all parts.

    The last result is reused while the names in the folders are the same. Files that changed in place are noticed when
    the page asks for its list of nodes, as it does after R is pressed.

    fresh  look at each file's size and time; only headers of new or changed files are read
    """
    return dict(current_listing(fresh).found)


def find_model(name: str) -> Path | None:
    """The model of that name; None if it is not a usable model now."""
    if not isinstance(name, str):  # a connected node can return anything
        return None
    for fresh in (False, True):
        path = find_models(fresh).get(name)
        if path is not None and (_is_release(path) or is_model_file(path)):
            return path
    return None


class Listing:
    """The result of one search for models, and the state of the folders that it depends on.

    found  as `find_models`
    """

    def __init__(self) -> None:
        self.found: dict[str, Path] = {}
        self._seen: dict[Path, int | None] = {}  # folder -> time of its last change; None: it is not there
        self._walked: dict[Path, str] = {}  # folder that may contain a model -> label of its place
        self._names = folder_paths.get_filename_list(CHECKPOINTS)
        self._registered = all_registered()

    def is_current(self) -> bool:
        """Whether the folders and the names in them are still the same."""
        return (
            self._registered == all_registered()
            and self._names == folder_paths.get_filename_list(CHECKPOINTS)
            and all(changed_at(folder) == time for folder, time in self._seen.items())
        )

    def search(self) -> None:
        """Fills `found`."""
        self._subfolders(Path(folder_paths.models_dir))
        for root, label in {**dict.fromkeys(roots(), KIND), **elsewhere()}.items():
            for folder in self._walk(root, SHARED_DEPTH if is_shared(label) else DEPTH):
                before = "" if label == KIND else f"{label}/"
                release = _is_release(folder)
                if release and (label == KIND or is_complete(folder)):
                    inner = folder.relative_to(root).as_posix()
                    self._add(root.name if before + inner == "." else f"{before}{inner}".removesuffix("/."), folder)
                if is_shared(label):
                    if folder != root:
                        self._walked.setdefault(folder, label)
                    continue
                self._walked.setdefault(folder, label)
                for file in weights_in(folder) if folder == root or not release else []:
                    if is_model_file(file):
                        self._add(f"{before}{file.relative_to(root).as_posix()}", file)
        self._find_checkpoints()
        self._find_cached()

    def refused(self) -> Iterator[tuple[Path, str]]:
        """Each folder or file that looks like Ovis-U1 and is not in `found`, with the reason."""
        listed = set(self.found.values())
        for path in self._suspects():
            if path not in listed and (reason := why_not_listed(path)):
                yield path, reason

    def _suspects(self) -> Iterator[Path]:
        for folder, label in self._walked.items():
            files = [] if is_shared(label) or has_pieces(folder) else weights_in(folder)
            if files:
                yield from (file for file in files if label == KIND or is_named_ovis_u1(file) or _names_ovis_u1(file))
            elif (label == KIND and changed_at(folder) is not None) or self._looks_like_release(folder):
                yield folder
        for name in self._names:
            if name.endswith(".safetensors") and is_named_ovis_u1(Path(name)):
                yield from (file for root in registered(CHECKPOINTS) if changed_at(file := root / name) is not None)

    def _looks_like_release(self, folder: Path) -> bool:
        repository = folder.parent.parent
        named = repository if repository.name.startswith(REPOSITORY_FOLDER) else folder
        return _is_release(folder) or looks_like_release(folder, is_named_ovis_u1(named), _names_ovis_u1)

    def _add(self, name: str, path: Path) -> None:
        self.found.setdefault(name, path)

    def _find_checkpoints(self) -> None:
        folders = registered(CHECKPOINTS)
        for name in self._names:
            if name.endswith(".safetensors"):
                file = next((file for folder in folders if is_model_file(file := folder / name)), None)
                if file is not None:
                    self._add(f"{CHECKPOINTS}/{Path(name).as_posix()}", file)

    def _find_cached(self) -> None:
        self._see(hub_cache())
        for repository, folder in cached_repositories().items():
            if mentions_ovis(repository):
                self._see(folder / "snapshots")
                whole = (path for path in snapshots(folder) if self._see_release(path) and is_complete(path))
                path = next(whole, None)
                if path is not None:
                    self._add(f"{HUB}/{repository}", path)

    def _walk(self, folder: Path, depth: int, outer: tuple[str, ...] = ()) -> Iterator[Path]:
        """Folders in `folder` that may contain a model. A release is not searched, except the topmost folder.

        In the hub's folder of a repository only the revisions are searched, at any depth.

        outer  the real paths of the folders around it; a link to one of them is not followed
        """
        real = os.path.realpath(folder)
        if real in outer:
            return
        if folder.name.startswith(REPOSITORY_FOLDER):
            self._see(folder)
            self._see(folder / "snapshots")
            inner = snapshots(folder)
            for snapshot in inner:
                self._see(snapshot)
            yield from inner
            return
        yield folder
        if self._see_release(folder) and outer:
            return
        if depth:
            for inner in self._subfolders(folder):
                if inner != hub_cache():
                    yield from self._walk(inner, depth - 1, (*outer, real))

    def _see_release(self, folder: Path) -> bool:
        """Whether a folder is a release; the listing then depends on it."""
        self._see(folder)
        return _is_release(folder)

    def _subfolders(self, folder: Path) -> list[Path]:
        self._see(folder)
        return subfolders(folder)

    def _see(self, folder: Path) -> None:
        self._seen.setdefault(folder, changed_at(folder))


def _page_asks() -> bool:
    """Whether ComfyUI is making its list of nodes for the page; meanwhile it caches the contents of folders."""
    return folder_paths.cache_helper.active


def current_listing(fresh: bool = False) -> Listing:
    """The last search for models, or a new one if the result may differ."""
    global _last
    if _last is None or fresh or _page_asks() or not _last.is_current():
        listing = Listing()
        listing.search()
        _last = listing
        _report(listing)
    return _last


def _report(listing: Listing) -> None:
    """Logs the reasons why folders and files are not listed, each once."""
    for _, reason in listing.refused():
        if reason not in _reported:
            _reported.add(reason)
            logging.warning(
                "Ovis-U1: a model is not listed in Ovis-U1 Load Model, because it cannot be used: %s", reason
            )


def why_not_listed(path: Path) -> str:
    """An error message if a folder or file cannot be listed; empty for a model, and for a folder without a model."""
    reason = why_not(path)
    if not reason and path.is_file() and not is_model_file(path):
        return (
            f"{path} has the tensor names of a release; rename it to {SINGLE} and put the release's {CONFIG} into its "
            "folder."
        )
    return reason
