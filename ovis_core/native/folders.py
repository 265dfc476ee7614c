"""Where ComfyUI keeps Ovis-U1 models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import folder_paths

from ..checkpoint import is_complete, is_release, is_single_file, why_not

KIND = "ovis_u1"
CHECKPOINTS = "checkpoints"  # ComfyUI's folder for files that hold all parts
ELSEWHERE = "ovis"  # where other packs put the release
ELSEWHERE_TOO = ("checkpoints", "diffusion_models", "text_encoders")  # where people put it


def register() -> None:
    """Adds `models/ovis_u1` to ComfyUI's folders; `extra_model_paths.yaml` can add more."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND))


def roots() -> list[Path]:
    """Folders that are searched for models, the first one is the place to put them."""
    return [Path(path) for path in folder_paths.get_folder_paths(KIND)]


def find_models() -> dict[str, Path]:
    """Name shown in the loader -> release folder, or file that holds all parts."""
    found: dict[str, Path] = {}
    for root in roots():
        for folder in _releases(root):
            found.setdefault(folder.relative_to(root).as_posix() if folder != root else root.name, folder)
        for file in sorted(root.glob("*.safetensors")):
            if _is_ours(file):
                found.setdefault(file.name, file)
    for folder in _subfolders(Path(folder_paths.models_dir) / ELSEWHERE):
        if is_complete(folder):
            found.setdefault(f"{ELSEWHERE}/{folder.name}", folder)
    for name in folder_paths.get_filename_list(CHECKPOINTS):
        path = folder_paths.get_full_path(CHECKPOINTS, name)
        if path and path.endswith(".safetensors") and _is_ours(Path(path)):
            found.setdefault(f"{CHECKPOINTS}/{Path(name).as_posix()}", Path(path))
    return found


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


def _is_ours(file: Path) -> bool:
    try:
        status = file.stat()
    except OSError:
        return False
    return _is_single_file(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _is_single_file(file: Path, size: int, changed: int) -> bool:
    return is_single_file(file)


def missing(name: str) -> str:
    """What to tell the user when no model has this name; empty when one has."""
    names = list(find_models())
    if name in names:
        return ""
    if names:
        choice = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        return f"model_name: {name!r} was not found; choose {choice}, or press R after adding one."
    refused = [reason for root in roots() for folder in _subfolders(root) if (reason := why_not(folder))]
    if refused:
        return f"model_name: no Ovis-U1 model was found. {refused[0]}"
    for kind in ELSEWHERE_TOO:
        for root in map(Path, folder_paths.get_folder_paths(kind)):
            astray = [folder for folder in _subfolders(root) if is_release(folder)]
            if astray:
                return (
                    f"model_name: {astray[0]} is an Ovis-U1 in another folder; move it into {roots()[0]}, and press R."
                )
    return (
        f"model_name: no Ovis-U1 model was found; run Ovis-U1 Download, or put the folder of AIDC-AI/Ovis-U1-3B into "
        f"{roots()[0]}, and press R to refresh."
    )


def _releases(root: Path) -> Iterator[Path]:
    """Release folders in `root`, also where files were put beside their folder, or a folder into itself."""
    if is_release(root):
        yield root
    for folder in _subfolders(root):
        if is_release(folder):
            yield folder
        else:
            yield from (inner for inner in _subfolders(folder) if is_release(inner))


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []
