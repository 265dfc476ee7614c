"""A model's files, checked before anything of it is loaded: path -> `Checkpoint`.

Only JSON, safetensors headers and metadata are read here; weights stay in their files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from . import layout
from .components import DECODER, KINDS, TEXT, VAE, Component, Kind, check, find, vae_config
from .config import ConfigError, OvisConfig, check_together
from .metadata import read_metadata
from .release import RELEASE
from .release_folder import CONFIG, ReleaseFolder, read_folder, why_no_release
from .safetensors_file import CheckpointError, header_bytes, header_mentions, read_entries

# In the headers of our files alone: a release's, and one file's with all components.
MARKS = tuple(f'"{start}'.encode() for start in (layout.DECODER, layout.VAE, DECODER.comfy_prefix + DECODER.probe))


@dataclass(frozen=True)
class Checkpoint:
    """A checked model: all of its components.

    tokenizer  folder of the tokenizer's files, or those files by name; None if none came with the weights
    side       pixels of the sides of the pictures that it was trained on; None for a model that makes any size
    """

    config: OvisConfig
    components: Mapping[Kind, Component]
    tokenizer: Path | Mapping[str, bytes] | None
    side: int | None = None

    decoder = property(lambda self: self.components[DECODER])
    text = property(lambda self: self.components[TEXT])
    vae = property(lambda self: self.components[VAE])


def open_model(path: Path) -> Checkpoint:
    """`open_release` of a folder, `open_file` of a file."""
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
    return open_release(path) if is_folder else open_file(path)


def open_release(folder: Path) -> Checkpoint:
    """Checks a release folder: config, files, and the name and shape of every tensor.

    Raises `CheckpointError` that names the first thing that is wrong.
    """
    release = read_folder(folder)
    return _open(dict.fromkeys(KINDS, release.weights), release)


def open_file(file: Path) -> Checkpoint:
    """Checks one file with all components, as core's CheckpointSave writes it from ours. Raises `CheckpointError`."""
    return open_parts(file, file, file)


def open_parts(decoder: Path, text: Path, vae: Path) -> Checkpoint:
    """Checks three files, each of which holds one component, alone or among others.

    The numbers of a component are those of its metadata, of a VAE those of its shapes, otherwise the published model's.
    Raises `CheckpointError` that names the first thing that is wrong.
    """
    return _open({DECODER: [decoder], TEXT: [text], VAE: [vae]})


def _open(files: Mapping[Kind, Sequence[Path]], release: ReleaseFolder | None = None) -> Checkpoint:
    headers = {file: read_entries(file) for file in dict.fromkeys(chain(*files.values()))}
    found, sources = [], {}
    for kind in KINDS:
        sources[kind] = release.folder if release else files[kind][0]
        found.append(find(kind, dict(chain(*(headers[file].items() for file in files[kind]))), sources[kind]))
    if release:
        config, tokenizer, config_name = release.config, release.tokenizer, f"its {CONFIG}"
    else:
        config, tokenizer, config_name = *_from_metadata(*found), "its config"
    components = {own.kind: check(own, config, sources[own.kind], config_name) for own in found}
    return Checkpoint(config, components, tokenizer)


def _from_metadata(decoder: Component, text: Component, vae: Component) -> tuple[OvisConfig, dict[str, bytes] | None]:
    """Config and the tokenizer's files, which are in the text encoder's, of components without a release's folder."""
    files = [component.entries[component.kind.probe].file for component in (decoder, text, vae)]
    sections, tokenizer = {"vae": vae_config(vae, files[2])}, None
    for component, file in ((decoder, files[0]), (text, files[1])):
        try:
            own, tokenizer = read_metadata(component.entries)
        except ConfigError as error:
            raise CheckpointError(f"{file}: {error} Save or download it again.") from error
        sections |= {name: own[name] for name in component.kind.sections if name in own}
    config = dataclasses.replace(RELEASE, **sections)
    try:
        check_together(config)
    except ConfigError as error:
        raise CheckpointError(f"{files[0]}, {files[1]} and {files[2]} do not belong together: {error}") from error
    return config, tokenizer


def is_single_file(file: Path) -> bool:
    """Whether a file holds all of an Ovis-U1 under ComfyUI's names, as core's CheckpointSave writes it."""
    probes = [f"{kind.comfy_prefix}{kind.probe}" for kind in KINDS]
    try:
        return header_mentions(file, probes) and set(probes) <= read_entries(file).keys()
    except (OSError, CheckpointError):
        return False


def holds_ours(file: Path) -> bool:
    """Whether the header of a file, or a release's index, names tensors that only Ovis-U1 has."""
    try:
        header = file.read_bytes() if file.suffix == ".json" else header_bytes(file)
    except OSError:
        return False
    return any(mark in header for mark in MARKS)


def why_not(path: Path) -> str:
    """Why a folder, or a file with all components, is not a usable Ovis-U1.

    Empty for one that is, and for a folder that holds no model's files.
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
