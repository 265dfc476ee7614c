"""ComfyUI's folders in which models are searched, and their contents."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

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
OVIS_U1 = re.compile(r"ovis(?![-_. ]*(\d|image|clip))", re.IGNORECASE)  # not Ovis2, Ovis1.6 or Ovis-Image


def register() -> None:
    """Adds `models/ovis_u1` to ComfyUI's folders; `extra_model_paths.yaml` can add more."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND))


def roots() -> list[Path]:
    """Folders that are searched for models; new models belong in the first one."""
    return registered(KIND)


def registered(kind: str) -> list[Path]:
    """ComfyUI's folders of a kind; empty if the kind is not registered."""
    return [Path(path) for path in folder_paths.folder_names_and_paths.get(kind, ([],))[0]]


def all_registered() -> list[tuple[str, list[Path]]]:
    """ComfyUI's kinds of folders that are searched, and their folders."""
    return [(kind, registered(kind)) for kind in (KIND, *_kinds())]


def _kinds() -> list[str]:
    """ComfyUI's kinds of folders that are searched in addition to our own."""
    kinds = [str(kind) for kind in folder_paths.folder_names_and_paths if kind != KIND]
    named = [kind for kind in kinds if mentions_ovis(kind)]
    return [*named, *(kind for shared in SHARED for kind in kinds if kind.lower() == shared)]


def elsewhere() -> dict[Path, str]:
    """Each folder, except our own, that may contain a release -> the prefix of its models' names."""
    own = roots()
    places: dict[Path, str] = {}
    for kind in _kinds():
        for folder in registered(kind):
            places.setdefault(folder, kind)
    for folder in subfolders(Path(folder_paths.models_dir)):
        if mentions_ovis(folder.name) or is_shared(folder.name):
            places.setdefault(folder, folder.name)
    return {folder: label for folder, label in places.items() if folder not in own}


def is_shared(label: str) -> bool:
    """Whether a folder, or a kind of folders, of this name contains other models as well."""
    return label.lower() in SHARED


def mentions_ovis(name: str) -> bool:
    """Whether a folder of this name is searched, because it may contain Ovis-U1."""
    return any(word in name.lower() for word in NAMED)


def is_named_ovis_u1(path: Path) -> bool:
    """Whether the name of a file or folder is one of Ovis-U1, not of another Ovis model."""
    return OVIS_U1.search(path.name) is not None


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, except hidden ones; none if it cannot be read."""
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry) for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def weights_in(folder: Path) -> list[Path]:
    """safetensors files in a folder; none if it cannot be read."""
    try:
        return sorted(file for file in folder.iterdir() if file.name.endswith(".safetensors"))
    except OSError:
        return []


def changed_at(folder: Path) -> int | None:
    """The time of a file's or folder's last change, in ns; None if it is not there."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
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
