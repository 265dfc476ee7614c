"""A model's files: found, read and checked before anything of it is loaded.

Only JSON and safetensors headers are read here; tensors stay in their files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import tokenizer
from .config import ConfigError, OvisConfig, read_config
from .layout import tensor_shapes
from .weights_file import CheckpointError, read_shapes

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHOWN = 3  # names in a message about many tensors


@dataclass(frozen=True)
class Checkpoint:
    """A checked release folder.

    tensors    name -> the safetensors file that holds it
    tokenizer  folder of the tokenizer's files, None where the release has none
    """

    folder: Path
    config: OvisConfig
    tensors: Mapping[str, Path]
    tokenizer: Path | None

    def files_with(self, names: Iterable[str]) -> list[Path]:
        """The files that hold these tensors, each once."""
        return sorted({self.tensors[name] for name in names})


def is_release(folder: Path) -> bool:
    """Whether a folder's config.json says that it is an Ovis-U1."""
    try:
        return _read_json(folder / CONFIG).get("model_type") == "ovis_u1"
    except CheckpointError:
        return False


def why_not(folder: Path) -> str:
    """What keeps a folder from being an Ovis-U1; empty for one that is, and for one that holds no model."""
    if not (folder / CONFIG).exists():
        return f"{folder} has no {CONFIG}" if any(folder.glob("*.safetensors")) else ""
    try:
        read_config(_read_json(folder / CONFIG))
    except ConfigError as error:
        return f"{folder / CONFIG}: {error}"
    except CheckpointError as error:
        return str(error)
    return ""


def is_complete(folder: Path) -> bool:
    """Whether a folder is an Ovis-U1 with all of its weight files."""
    try:
        return is_release(folder) and all(file.is_file() for file in _weight_files(folder))
    except CheckpointError:
        return False


def open_release(folder: Path) -> Checkpoint:
    """Checks a release folder: config, files, and the name and shape of every tensor.

    Raises `CheckpointError` that names the first thing that is wrong.
    """
    try:
        config = read_config(_read_json(folder / CONFIG))
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    files = _weight_files(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {_some(missing)}: the download is not complete. Fetch the missing files into that folder."
        )
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, Path] = {}
    for file in files:
        found = read_shapes(file)
        shapes.update(found)
        places.update(dict.fromkeys(found, file))
    _check_tensors(folder, config, shapes)
    own = all((folder / name).is_file() for name in tokenizer.FILES) or (folder / "tokenizer.json").is_file()
    return Checkpoint(folder, config, places, folder if own else None)


def _check_tensors(folder: Path, config: OvisConfig, found: dict[str, tuple[int, ...]]) -> None:
    missing = []
    for name, shape in tensor_shapes(config):
        if name not in found:
            missing.append(name)
        elif found[name] != shape:
            raise CheckpointError(
                f"{folder}: tensor {name} has shape {list(found[name])}; its {CONFIG} asks for {list(shape)}. "
                "Weights and config do not belong together; download both again."
            )
    if missing:
        raise CheckpointError(
            f"{folder}: tensor {_some(missing)} missing from its safetensors files. Download the model again."
        )


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        entries = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(entries, dict) or not entries:
            raise CheckpointError(f"{folder / INDEX} has no weight_map. Download it again.")
        if not all(isinstance(name, str) for name in entries.values()):
            raise CheckpointError(f"{folder / INDEX} has a weight_map that does not name files. Download it again.")
        names = sorted(set(entries.values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointError(f"{folder / INDEX} names files outside its folder; it is not used.")
        return [folder / name for name in names]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles and not (folder / SINGLE).is_file():
        raise CheckpointError(
            f"{folder} holds {_some(pickles)} and no safetensors files. Pickles can run code when they are read, so "
            "they are not; download the release's safetensors files."
        )
    return [folder / SINGLE]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); it belongs to the release.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object. Download it again.")
    return value


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
