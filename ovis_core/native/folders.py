"""Finds Ovis-U1 models in ComfyUI's folders."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from stat import S_ISREG

import folder_paths

from ..weights.checkpoint import why_not
from ..weights.hub_cache import REPOSITORY_FOLDER, cached_repositories, hub_cache, snapshots
from ..weights.recognition import is_single_file, names_ovis_u1
from ..weights.release_folder import CONFIG, SINGLE, has_pieces, is_complete, is_release, looks_like_release

KIND = "ovis_u1"
CHECKPOINTS = "checkpoints"  # ComfyUI's folder for files with all parts
# Other folders in which people put it, in upper or lower case; they contain other models as well.
SHARED = (
    "checkpoints",
    "diffusion_models",
    "text_encoders",
    "diffusers",
    "llm",
    "vlm",
    "transformers",
    "huggingface",
)
NAMED = ("ovis", "aidc-ai")  # other folders are searched if their name contains one of these
OURS = re.compile(r"ovis(?![-_. ]*(\d|image|clip))", re.IGNORECASE)  # not Ovis2, Ovis1.6 or Ovis-Image
HUB = "huggingface"  # before the names of models in the hub's cache
DEPTH = 3  # levels of folders that are searched inside a folder of models
SHARED_DEPTH = 2


def register() -> None:
    """Adds `models/ovis_u1` to ComfyUI's folders; `extra_model_paths.yaml` can add more."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND))


def roots() -> list[Path]:
    """Folders that are searched for models; new models belong in the first one."""
    return _registered(KIND)


def find_models(fresh: bool = False) -> dict[str, Path]:
    """Name shown in the loader -> release folder, or file with all parts.

    The last result is reused while the names in the folders are the same. Files that changed in place are noticed when
    the page asks for its list of nodes, as it does after R is pressed.

    fresh  look at each file's size and time; only headers of new or changed files are read
    """
    return dict(_listing(fresh).found)


def find_model(name: str) -> Path | None:
    """The model of that name; None if it is not a usable model now."""
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
    """An error message if no model has this name; empty if one has it."""
    if find_model(name) is not None:
        return ""
    listing = _listing()
    refused = list(listing.refused())
    for place in _places(name):
        if os.path.lexists(place):
            return f"model_name: {name!r} cannot be used: {_why_not_this(place, listing, refused)}"
    if _is_inside(name):
        parts = Path(name).parts
        reason = next((reason for path, reason in refused if path.parts[-len(parts) :] == parts), "")
        if reason:
            return f"model_name: {name!r} cannot be used: {reason}"
    names = list(listing.found)
    if names:
        choice = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        return f"model_name: {name!r} was not found; choose {choice}, or add the model and press R to refresh."
    if refused:
        return f"model_name: no Ovis-U1 model was found: {refused[0][1]}"
    return (
        "model_name: no Ovis-U1 model was found; run Ovis-U1 Download, or put the folder of AIDC-AI/Ovis-U1-3B into "
        f"{roots()[0]}, and press R to refresh."
    )


class _Listing:
    """The result of one search for models, and the state of the folders that it depends on.

    found  as `find_models`
    """

    def __init__(self) -> None:
        self.found: dict[str, Path] = {}
        self._seen: dict[Path, int | None] = {}  # folder -> time of its last change; None: it is not there
        self._walked: dict[Path, str] = {}  # folder that may contain a model -> label of its place
        self._names = folder_paths.get_filename_list(CHECKPOINTS)
        self._registered = _all_registered()

    def is_current(self) -> bool:
        """Whether the folders and the names in them are still the same."""
        return (
            self._registered == _all_registered()
            and self._names == folder_paths.get_filename_list(CHECKPOINTS)
            and all(_changed(folder) == time for folder, time in self._seen.items())
        )

    def search(self) -> None:
        """Fills `found`."""
        self._subfolders(Path(folder_paths.models_dir))
        for root, label in {**dict.fromkeys(roots(), KIND), **_elsewhere()}.items():
            for folder in self._walk(root, SHARED_DEPTH if _is_shared(label) else DEPTH):
                before = "" if label == KIND else f"{label}/"
                release = _is_release(folder)
                if release and (label == KIND or is_complete(folder)):
                    inner = folder.relative_to(root).as_posix()
                    self._add(root.name if before + inner == "." else f"{before}{inner}".removesuffix("/."), folder)
                if _is_shared(label):
                    if folder != root:
                        self._walked.setdefault(folder, label)
                    continue
                self._walked.setdefault(folder, label)
                for file in _weights(folder) if folder == root or not release else []:
                    if _is_ours(file):
                        self._add(f"{before}{file.relative_to(root).as_posix()}", file)
        self._find_checkpoints()
        self._find_cached()

    def refused(self) -> Iterator[tuple[Path, str]]:
        """Each folder or file that looks like Ovis-U1 and is not in `found`, with the reason."""
        listed = set(self.found.values())
        for path in self._suspects():
            if path not in listed and (reason := _why_not(path)):
                yield path, reason

    def _suspects(self) -> Iterator[Path]:
        for folder, label in self._walked.items():
            files = [] if _is_shared(label) or has_pieces(folder) else _weights(folder)
            if files:
                yield from (file for file in files if label == KIND or _is_named_ours(file) or _names_ovis_u1(file))
            elif (label == KIND and _changed(folder) is not None) or self._looks_like_release(folder):
                yield folder
        for name in self._names:
            if name.endswith(".safetensors") and OURS.search(Path(name).name):
                yield from (file for root in _registered(CHECKPOINTS) if _changed(file := root / name) is not None)

    def _looks_like_release(self, folder: Path) -> bool:
        repository = folder.parent.parent
        named = repository if repository.name.startswith(REPOSITORY_FOLDER) else folder
        return _is_release(folder) or looks_like_release(folder, _is_named_ours(named), _names_ovis_u1)

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

    def _walk(self, folder: Path, depth: int, top: bool = True) -> Iterator[Path]:
        """Folders in `folder` that may contain a model. A release is not searched, except the topmost folder.

        In the hub's folder of a repository only the revisions are searched, at any depth.
        """
        if folder.name.startswith(REPOSITORY_FOLDER):
            self._see(folder)
            self._see(folder / "snapshots")
            inner = snapshots(folder)
            for snapshot in inner:
                self._see(snapshot)
            yield from inner
            return
        yield folder
        if self._is_release(folder) and not top:
            return
        if depth:
            for inner in self._subfolders(folder):
                if inner != hub_cache():
                    yield from self._walk(inner, depth - 1, top=False)

    def _is_release(self, folder: Path) -> bool:
        self._see(folder)
        return _is_release(folder)

    def _subfolders(self, folder: Path) -> list[Path]:
        self._see(folder)
        return _subfolders(folder)

    def _see(self, folder: Path) -> None:
        self._seen.setdefault(folder, _changed(folder))


def _page_asks() -> bool:
    """Whether ComfyUI is making its list of nodes for the page; meanwhile it caches the contents of folders."""
    return folder_paths.cache_helper.active


def _listing(fresh: bool = False) -> _Listing:
    """The last search for models, or a new one if the result may differ."""
    global _last
    if _last is None or fresh or _page_asks() or not _last.is_current():
        listing = _Listing()
        listing.search()
        _last = listing
        _report(listing)
    return _last


_last: _Listing | None = None
_answers: dict[tuple[str, Path], tuple[tuple[int, ...], bool]] = {}  # of files, with their sizes and times
_reported: set[str] = set()


def _is_release(folder: Path) -> bool:
    return _of_file(folder / CONFIG, "release", lambda: is_release(folder))


def _is_ours(file: Path) -> bool:
    return _of_file(file, "single", lambda: is_single_file(file))


def _names_ovis_u1(file: Path) -> bool:
    return _of_file(file, "ours", lambda: names_ovis_u1(file))


def _of_file(file: Path, question: str, ask: Callable[[], bool]) -> bool:
    """The answer to a question about a file, cached until the file changes."""
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


def _kinds() -> list[str]:
    """ComfyUI's kinds of folders that are searched in addition to our own."""
    kinds = [str(kind) for kind in folder_paths.folder_names_and_paths if kind != KIND]
    named = [kind for kind in kinds if _is_named(kind)]
    return [*named, *(kind for shared in SHARED for kind in kinds if kind.lower() == shared)]


def _all_registered() -> list[tuple[str, list[Path]]]:
    return [(kind, _registered(kind)) for kind in (KIND, *_kinds())]


def _elsewhere() -> dict[Path, str]:
    """Each folder, except our own, that may contain a release -> the prefix of its models' names."""
    own = roots()
    places: dict[Path, str] = {}
    for kind in _kinds():
        for folder in _registered(kind):
            places.setdefault(folder, kind)
    for folder in _subfolders(Path(folder_paths.models_dir)):
        if _is_named(folder.name) or _is_shared(folder.name):
            places.setdefault(folder, folder.name)
    return {folder: label for folder, label in places.items() if folder not in own}


def _is_shared(label: str) -> bool:
    return label.lower() in SHARED


def _is_named(name: str) -> bool:
    return any(word in name.lower() for word in NAMED)


def _is_named_ours(path: Path) -> bool:
    return OURS.search(path.name) is not None


def _is_inside(name: object) -> bool:
    """Whether a name stays inside its folder."""
    return isinstance(name, str) and bool(Path(name).parts) and not Path(name).anchor and ".." not in Path(name).parts


def _why_not(path: Path) -> str:
    """An error message if a folder or file cannot be listed; empty for a model, and for a folder without a model."""
    reason = why_not(path)
    if not reason and path.is_file() and not _is_ours(path):
        return (
            f"{path} has the tensor names of a release; rename it to {SINGLE} and put the release's {CONFIG} into its "
            "folder."
        )
    return reason


def _why_not_this(place: Path, listing: _Listing, refused: list[tuple[Path, str]]) -> str:
    """An error message for a name whose file or folder exists and cannot be used."""
    for path, reason in refused:
        if place in (path, *path.parents):
            return reason
    listed = next((name for name, path in listing.found.items() if place in (path, *path.parents)), "")
    if listed:
        return f"the model in {place} has the name {listed!r} in the list; choose that name."
    reason = _why_not(place)
    if reason:
        return reason
    if is_complete(place) or _is_ours(place):
        return f"{place} is a complete model, but its folder is not searched; move it into {roots()[0]}."
    return f"{place} does not contain a model; put the files of AIDC-AI/Ovis-U1-3B into it."


def _places(name: str) -> Iterator[Path]:
    """The paths where a model of that name would be."""
    if not _is_inside(name):
        return
    yield from (root / name for root in roots())
    label, _, rest = name.partition("/")
    yield from (root / rest for root, its_label in _elsewhere().items() if its_label == label)
    if label == HUB and rest in (cached := cached_repositories()):
        yield from snapshots(cached[rest])


def _report(listing: _Listing) -> None:
    """Logs the reasons why folders and files are not listed, each once."""
    for _, reason in listing.refused():
        if reason not in _reported:
            _reported.add(reason)
            logging.warning("Ovis-U1: a model is not in the list, because it cannot be used: %s", reason)


def _subfolders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _weights(folder: Path) -> list[Path]:
    """safetensors files in a folder; none if it cannot be read."""
    try:
        return sorted(file for file in folder.iterdir() if file.name.endswith(".safetensors"))
    except OSError:
        return []


def _changed(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
