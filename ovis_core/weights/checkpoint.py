"""Finds and checks a model's files before anything is loaded: path -> `Checkpoint`.

Only JSON, safetensors headers and metadata are read here; weights stay in their files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .component_checks import check_component, config_and_tokenizer
from .components import DECODER, KINDS, TEXT, VAE, Component, Kind, find
from .config import OvisConfig
from .release_folder import CONFIG, ReleaseFolder, read_folder, why_no_release
from .safetensors_file import CheckpointError, TensorEntry, read_entries


@dataclass(frozen=True)
class Checkpoint:
    """A checked model: all of its components, or those that a state dict has.

    tokenizer  folder of the tokenizer's files, or those files by name; None if none came with the weights
    side       pixels of the sides of the images that it was trained on; None for a model that makes any size
    """

    config: OvisConfig
    components: Mapping[Kind, Component]
    tokenizer: Path | Mapping[str, bytes] | None
    side: int | None = None


def open_model(path: Path) -> Checkpoint:
    """Checks a release's folder, or one file with all components, as core's CheckpointSave writes it.

    Raises `CheckpointError` that names the first fault.
    """
    try:
        release = read_folder(path) if path.is_dir() else None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
    files = release.weights if release else [path]
    entries = {name: entry for file in files for name, entry in read_entries(file).items()}
    return _check(dict.fromkeys(KINDS, entries), dict.fromkeys(KINDS, path), release)


def open_parts(decoder: Path, text: Path, vae: Path) -> Checkpoint:
    """Checks three files, each with one component, alone or among others.

    The config of a component comes from its metadata, a VAE's from its shapes; otherwise the published model's is used.
    Raises `CheckpointError` that names the first fault.
    """
    files = {DECODER: decoder, TEXT: text, VAE: vae}
    entries = {file: read_entries(file) for file in dict.fromkeys(files.values())}
    return _check({kind: entries[file] for kind, file in files.items()}, files)


def check_tensors(entries: Mapping[str, TensorEntry], kinds: Iterable[Kind]) -> Checkpoint:
    """Checks the components of these kinds in a state dict. The config comes from where `open_parts` takes it.

    Raises `CheckpointError` that names the first fault.
    """
    sources = {kind: f"Ovis-U1's {kind.title}" for kind in kinds}
    return _check(dict.fromkeys(sources, entries), sources)


def _check(
    entries: Mapping[Kind, Mapping[str, TensorEntry]],
    sources: Mapping[Kind, object],
    release: ReleaseFolder | None = None,
) -> Checkpoint:
    """The checkpoint of these tensors, by component. Raises `CheckpointError`.

    sources  where the tensors come from, for messages
    release  None: the config comes from metadata
    """
    found = {kind: find(kind, entries[kind], source) for kind, source in sources.items()}
    if release:
        config, tokenizer, config_name = release.config, release.tokenizer, f"its {CONFIG}"
    else:
        config, tokenizer, config_name = *config_and_tokenizer(found, sources), "its config"
    checked = {
        kind: check_component(component, config, sources[kind], config_name) for kind, component in found.items()
    }
    return Checkpoint(config, checked, tokenizer)


def why_not(path: Path) -> str:
    """An error message if a folder, or a file with all components, is not a usable Ovis-U1.

    Empty if it is usable, and for a folder without model files.
    """
    try:
        if path.is_dir() and not any(entry.name == CONFIG for entry in path.iterdir()):
            return why_no_release(path)
        open_model(path)
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error}); check its permissions."
    return ""
