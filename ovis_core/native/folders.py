"""Where ComfyUI keeps Ovis-U1 models."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from stat import S_ISREG

import folder_paths

from ..checkpoint import CONFIG, is_complete, is_release, is_single_file, why_not
from ..hub_cache import cached_repositories, hub_cache, snapshots

KIND = "ovis_u1"
CHECKPOINTS = "checkpoints"  # ComfyUI's folder for files that hold all parts
ELSEWHERE = "ovis"  # where other packs put the release
SHARED = ("checkpoints", "diffusion_models", "text_encoders", "diffusers", "LLM")  # where people put it too
NAMED = ("ovis", "aidc-ai")  # in the name of a folder beside these that is searched
HUB = "huggingface"  # before the names of models in the hub's cache
DEPTH = 3  # folders inside a folder of models; what is below is not searched
SHARED_DEPTH = 2


def register() -> None:
    """Adds `models/ovis_u1` to ComfyUI's folders; `extra_model_paths.yaml` can add more."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND))


def roots() -> list[Path]:
    """Folders that are searched for models, the first one is the place to put them."""
    return _registered(KIND)


def find_models(fresh: bool = False) -> dict[str, Path]:
    """Name shown in the loader -> release folder, or file that holds all parts.

    The last answer is given again while the folders hold the same names. Files that changed in place are seen when
    the page asks for its list of nodes, as it does after R is pressed.

    fresh  look at each file's size and time; headers are only read of files that are new or changed
    """
    global _last
    listing = _last
    if listing is None or fresh or _page_asks() or not listing.is_current():
        listing = _Listing()
        listing.search()
        _last = listing
        _report(listing.found)
    return dict(listing.found)


def find_model(name: str) -> Path | None:
    """The model of that name, if it is one now."""
    if not isinstance(name, str):  # a link can bring anything
        return None
    for fresh in (False, True):
        path = find_models(fresh).get(name)
        if path is not None and (_is_release(path) or _is_ours(path)):
            return path
    return None


def fingerprint(*paths: Path) -> str:
    """Changes when one of these files, or a file of one of these folders, does."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    files = [file for file in files if file.suffix in (".json", ".safetensors", ".txt")]
    return repr([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def part_names(kind: str) -> list[str]:
    """safetensors files in one of ComfyUI's folders."""
    return [name for name in folder_paths.get_filename_list(kind) if name.endswith(".safetensors")]


def part_path(kind: str, name: str) -> Path:
    """The file of one of `part_names`. Raises FileNotFoundError when it is gone."""
    return Path(folder_paths.get_full_path_or_raise(kind, name))


def missing(name: str) -> str:
    """What to tell the user when no model has this name; empty when one has."""
    if find_model(name) is not None:
        return ""
    for place in _places(name):
        if os.path.lexists(place):
            reason = why_not(place) or f"{place} holds no model; put the files of AIDC-AI/Ovis-U1-3B there."
            return f"model_name: {name!r} cannot be used: {reason}"
    names = list(find_models())
    if names:
        choice = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        return f"model_name: {name!r} was not found; choose {choice}, or press R after adding one."
    refused = next(_refused({}), "")
    if refused:
        return f"model_name: no Ovis-U1 model was found: {refused}"
    return (
        f"model_name: no Ovis-U1 model was found; run Ovis-U1 Download, or put the folder of AIDC-AI/Ovis-U1-3B into "
        f"{roots()[0]}, and press R to refresh."
    )


class _Listing:
    """One search for models, and what it depends on.

    found  as `find_models`
    """

    def __init__(self) -> None:
        self.found: dict[str, Path] = {}
        self._seen: dict[Path, int | None] = {}  # folder -> when names in it changed last; None: it is not there
        self._names = folder_paths.get_filename_list(CHECKPOINTS)
        self._registered = _all_registered()

    def is_current(self) -> bool:
        """Whether the folders are the same and hold the same names."""
        return (
            self._registered == _all_registered()
            and self._names == folder_paths.get_filename_list(CHECKPOINTS)
            and all(_changed(folder) == time for folder, time in self._seen.items())
        )

    def search(self) -> None:
        """Fills `found`."""
        own = roots()
        for root in own:
            for folder in self._releases(root, DEPTH):
                self._add(folder.relative_to(root).as_posix() if folder != root else root.name, folder)
            for file in sorted(root.glob("*.safetensors")):
                if _is_ours(file):
                    self._add(file.name, file)
        self._subfolders(Path(folder_paths.models_dir))
        for root, label in _elsewhere().items():
            for folder in self._releases(root, SHARED_DEPTH if label in SHARED else DEPTH):
                if is_complete(folder):
                    self._add(f"{label}/{folder.relative_to(root).as_posix()}".removesuffix("/."), folder)
        self._find_checkpoints()
        self._find_cached()

    def _add(self, name: str, path: Path) -> None:
        self.found.setdefault(name, path)

    def _find_checkpoints(self) -> None:
        folders = _registered(CHECKPOINTS)
        for name in self._names:
            if name.endswith(".safetensors"):
                file = next((file for folder in folders if _is_ours(file := folder / name)), None)
                if file is not None:
                    self._add(f"{CHECKPOINTS}/{Path(name).as_posix()}", file)

    def _find_cached(self) -> None:
        self._see(hub_cache())
        for repository, folder in cached_repositories().items():
            if _is_named(repository):
                self._see(folder / "snapshots")
                whole = (path for path in snapshots(folder) if self._is_release(path) and is_complete(path))
                path = next(whole, None)
                if path is not None:
                    self._add(f"{HUB}/{repository}", path)

    def _releases(self, folder: Path, depth: int, top: bool = True) -> Iterator[Path]:
        """Release folders in `folder`, also where files were put beside their folder, or a folder into another."""
        if self._is_release(folder):
            yield folder
            if not top:
                return
        if depth:
            for inner in self._subfolders(folder):
                yield from self._releases(inner, depth - 1, top=False)

    def _is_release(self, folder: Path) -> bool:
        self._see(folder)
        return _is_release(folder)

    def _subfolders(self, folder: Path) -> list[Path]:
        self._see(folder)
        return _subfolders(folder)

    def _see(self, folder: Path) -> None:
        self._seen.setdefault(folder, _changed(folder))


def _page_asks() -> bool:
    """Whether ComfyUI is making its list of nodes for the page; it keeps what it reads of folders meanwhile."""
    return getattr(getattr(folder_paths, "cache_helper", None), "active", True)


_last: _Listing | None = None
_answers: dict[tuple[str, Path], tuple[tuple[int, ...], bool]] = {}  # of files, with what they were then
_reported: set[str] = set()


def _is_release(folder: Path) -> bool:
    return _of_file(folder / CONFIG, "release", lambda: is_release(folder))


def _is_ours(file: Path) -> bool:
    return _of_file(file, "single", lambda: is_single_file(file))


def _of_file(file: Path, question: str, ask: Callable[[], bool]) -> bool:
    """The answer to a question about a file, which is asked again when the file has changed."""
    try:
        status = file.stat()
    except OSError:
        return False
    if not S_ISREG(status.st_mode):
        return False
    state = (status.st_size, status.st_mtime_ns, status.st_mode)
    known = _answers.get((question, file))
    if known is None or known[0] != state:
        known = _answers[question, file] = state, ask()
    return known[1]


def _registered(kind: str) -> list[Path]:
    """ComfyUI's folders of a kind; empty if the kind is not registered."""
    return [Path(path) for path in folder_paths.folder_names_and_paths.get(kind, ([],))[0]]


def _all_registered() -> list[list[Path]]:
    return [_registered(kind) for kind in (KIND, ELSEWHERE, *SHARED)]


def _elsewhere() -> dict[Path, str]:
    """Each folder beside our own that may hold a release -> what its models' names begin with."""
    models, own = Path(folder_paths.models_dir), roots()
    places: dict[Path, str] = {}
    for label in (ELSEWHERE, *SHARED):
        for folder in (*_registered(label), models / label):
            places.setdefault(folder, label)
    for folder in _subfolders(models):
        if _is_named(folder.name):
            places.setdefault(folder, folder.name)
    return {folder: label for folder, label in places.items() if folder not in own}


def _is_named(name: str) -> bool:
    return any(word in name.lower() for word in NAMED)


def _places(name: str) -> Iterator[Path]:
    """Where a model of that name would be."""
    if not isinstance(name, str) or not name or Path(name).anchor or Path(name).drive or ".." in Path(name).parts:
        return
    yield from (root / name for root in roots())
    label, _, rest = name.partition("/")
    yield from (root / rest for root, its_label in _elsewhere().items() if its_label == label)
    if label == HUB and rest in (cached := cached_repositories()):
        yield from snapshots(cached[rest])


def _report(found: Mapping[str, Path]) -> None:
    """Logs what is not listed, each reason once."""
    for reason in _refused(found):
        if reason not in _reported:
            _reported.add(reason)
            logging.warning("Ovis-U1: a folder is not listed as a model: %s", reason)


def _refused(found: Mapping[str, Path]) -> Iterator[str]:
    """Reasons why folders that look like models are not in `found`."""
    folders = [folder for root in roots() for folder in _subfolders(root) if not _is_release(folder)]
    folders += [
        folder
        for root, label in _elsewhere().items()
        for folder in (root, *_subfolders(root))
        if label not in SHARED and _is_release(folder)
    ]
    listed = set(found.values())
    yield from (reason for folder in folders if folder not in listed and (reason := why_not(folder)))


def _subfolders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
