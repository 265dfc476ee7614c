"""A release's folder: how it is recognised, and its config, weight files and tokenizer."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .config import ConfigError, OvisConfig, read_config
from .release import TOKENIZER_FILES
from .safetensors_file import CheckpointError, some

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARDS = "model-*-of-*.safetensors"
UNFINISHED = (".part", ".incomplete", ".download", ".crdownload", ".aria2")  # suffixes of unfinished downloads
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ReleaseFolder:
    """The contents of a release's folder.

    tokenizer  the folder, if it has the tokenizer's files
    """

    config: OvisConfig
    weights: list[Path]
    tokenizer: Path | None


def read_folder(folder: Path) -> ReleaseFolder:
    """Reads the config and finds the files of weights. Raises `CheckpointError` that names the first fault."""
    try:
        config = read_config(_read_json(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(
            f"{folder / CONFIG}: {error}; choose another folder, or replace the file with the release's."
        ) from error
    files = _weight_files(folder)
    missing = [file.name for file in files if not file.is_file()]
    gone = [name for name in missing if (folder / name).is_symlink()]
    if gone:
        raise CheckpointError(
            f"{folder}: expected files, got links to missing files ({some(gone)}); replace the links with the files."
        )
    if missing:
        raise CheckpointError(
            f"{folder} lacks {some(missing)}: the download is incomplete; run Ovis-U1 Download again, or put the "
            "missing files into that folder."
        )
    own = any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES)
    return ReleaseFolder(config, files, folder if own else None)


def is_release(folder: Path) -> bool:
    """Whether a folder has a config.json of Ovis-U1."""
    try:
        return _read_json(folder / CONFIG).get("model_type") == "ovis_u1"
    except CheckpointError:
        return False


def is_complete(folder: Path) -> bool:
    """Whether a folder is a release of Ovis-U1 with all of its weight files."""
    try:
        return is_release(folder) and all(file.is_file() for file in _weight_files(folder))
    except CheckpointError:
        return False


def why_no_release(folder: Path) -> str:
    """An error message for a folder without a config.json; empty if it has no model files."""
    names = _names(folder)
    if any(name.endswith(UNFINISHED) for name in names):
        return (
            f"{folder} contains an unfinished download; run Ovis-U1 Download again, or put the missing files into it."
        )
    if any(name.endswith((".safetensors", *(pattern[1:] for pattern in PICKLES))) for name in names):
        return f"{folder} has no {CONFIG}; copy the release's {CONFIG} into it."
    return ""


def has_pieces(folder: Path) -> bool:
    """Whether a folder has any of a release's files."""
    return any(name in (CONFIG, INDEX, SINGLE) or fnmatch(name, SHARDS) for name in _names(folder))


def looks_like_release(folder: Path, has_ovis_name: bool, names_ovis_tensors: Callable[[Path], bool]) -> bool:
    """Whether a folder was meant to be a release of Ovis-U1, not another model.

    has_ovis_name       whether its name is one of Ovis-U1
    names_ovis_tensors  `recognition.names_ovis_u1`, or a function that caches its answers
    """
    names = _names(folder)
    pieces = [name for name in names if name == INDEX or fnmatch(name, SHARDS)]
    if any(names_ovis_tensors(folder / name) for name in (*pieces, *(name for name in names if name == SINGLE))):
        return True
    if not has_ovis_name:
        return False
    try:
        return _read_json(folder / CONFIG).get("model_type") in (None, "ovis_u1")
    except CheckpointError:
        return bool(pieces) or any(name == CONFIG or name.endswith(UNFINISHED) for name in names)


def _names(folder: Path) -> list[str]:
    """Names in a folder; none if it cannot be read."""
    try:
        return sorted(
            (entry.name for entry in folder.iterdir()), reverse=True
        )  # the index, if there is one, before the shards
    except OSError:
        return []


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        entries = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(entries, dict) or not entries:
            raise CheckpointError(f"{folder / INDEX} has no weight_map; download it again.")
        if not all(isinstance(name, str) for name in entries.values()):
            raise CheckpointError(f"{folder / INDEX} has a weight_map that does not name files; download it again.")
        names = sorted(set(entries.values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX} names files outside its folder; download it again.")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles and not (folder / SINGLE).is_file():
        raise CheckpointError(
            f"{folder} contains {some(pickles)}, but no safetensors files; pickles are not read, because they can "
            "run code; download the release's safetensors files."
        )
    if any(folder.glob(SHARDS)) and not (folder / SINGLE).is_file():
        raise CheckpointError(
            f"{folder} contains the shards of a model, but no {INDEX}; copy the release's {INDEX} into it."
        )
    return [folder / SINGLE]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            raise CheckpointError(f"{path} is a link to a missing file; replace it with the file.") from error
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}); check that it exists, and check its permissions."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; download it again.")
    return value
