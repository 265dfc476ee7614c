"""A base directory for ComfyUI, so that nothing is written into ComfyUI itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from .cache import remove

PACK = "ovis-u1-native"  # the name in the registry, which names the folder of an installed pack


def make_base(folder: Path, pack: Path, comfyui: Path) -> Path:
    """A base directory with a link to the pack and the sample pictures of `comfyui`, which is not changed."""
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    try:
        link_folder(pack, folder / "custom_nodes" / PACK)
    except OSError:
        ignore = shutil.ignore_patterns(".git", "__pycache__", "output")
        shutil.copytree(pack, folder / "custom_nodes" / PACK, ignore=ignore)
    for picture in (comfyui / "input").glob("example*.png"):
        if not (folder / "input" / picture.name).exists():
            shutil.copy(picture, folder / "input")
    return folder


def link_folder(target: Path, link: Path) -> None:
    """Makes `link` a link to the folder `target`. Raises OSError if the system does not allow it."""
    target = target.resolve()
    if link.exists() and link.resolve() == target:
        return
    remove(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform != "win32":
        link.symlink_to(target, target_is_directory=True)
        return
    # A junction, because Windows allows symbolic links only for administrators.
    done = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], capture_output=True)
    if done.returncode != 0:
        raise OSError(f"mklink /J {link} {target} failed")
