"""Where ComfyUI keeps Ovis-U1 models."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..checkpoint import is_complete, is_release, why_not

KIND = "ovis_u1"
ELSEWHERE = "ovis"  # where other packs put the release


def register() -> None:
    """Adds `models/ovis_u1` to ComfyUI's folders; `extra_model_paths.yaml` can add more."""
    folder_paths.add_model_folder_path(KIND, str(Path(folder_paths.models_dir) / KIND))


def roots() -> list[Path]:
    """Folders that are searched for models, the first one is the place to put them."""
    return [Path(path) for path in folder_paths.get_folder_paths(KIND)]


def find_models() -> dict[str, Path]:
    """Name shown in the loader -> release folder."""
    found: dict[str, Path] = {}
    for root in roots():
        for folder in _subfolders(root):
            if is_release(folder):
                found.setdefault(folder.name, folder)
    for folder in _subfolders(Path(folder_paths.models_dir) / ELSEWHERE):
        if is_complete(folder):
            found.setdefault(f"{ELSEWHERE}/{folder.name}", folder)
    return found


def missing(name: str) -> str:
    """What to tell the user when no model has this name; empty when one has."""
    names = list(find_models())
    if name in names:
        return ""
    if names:
        return f"model_name: {name!r} was not found; choose one of {', '.join(names)}."
    refused = [reason for root in roots() for folder in _subfolders(root) if (reason := why_not(folder))]
    if refused:
        return f"model_name: no Ovis-U1 model was found. {refused[0]}"
    return (
        f"model_name: no Ovis-U1 model was found; put the folder of AIDC-AI/Ovis-U1-3B into {roots()[0]} and press R "
        "to refresh."
    )


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir())
    except OSError:
        return []
