"""A model's files: found, read and checked before anything of it is loaded.

Only JSON and safetensors headers are read here; tensors stay in their files.
"""

from __future__ import annotations

import dataclasses
import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import layout
from .config import LATENT_CHANNELS, ConfigError, OvisConfig, VaeConfig, check_together, load_sections, read_config
from .release import RELEASE, TOKENIZER_FILES
from .safetensors_file import CheckpointError, header_mentions, read_carried, read_header, read_shapes

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARDS = "model-*-of-*.safetensors"

CARRIED = "ovis_u1."  # before the names of what travels with weights: the config, the tokenizer's files
WEIGHT = ".weight"
SCALES = (".weight_scale", ".scale_weight")  # of a layer's weight in 8 bits, in newer and older files
MOST_LEVELS = 16  # of a VAE
UNFINISHED = (".part", ".incomplete", ".download", ".crdownload", ".aria2")  # endings of files that are being fetched
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHOWN = 3  # names in a message about many tensors


@dataclass(frozen=True)
class Kind:
    """One of the parts that ComfyUI handles by itself.

    title     in messages
    prefixes  under which its tensors are found: the release's, ComfyUI's, and where it differs that of files of its own
    probe     a tensor that tells it, without prefix
    sections  of the config, that it needs
    """

    title: str
    prefixes: tuple[str, ...]
    probe: str
    sections: tuple[str, ...]

    @property
    def comfy_prefix(self) -> str:
        """ComfyUI's own."""
        return self.prefixes[1]


DECODER = Kind("diffusion model", (layout.DECODER, "model.diffusion_model.", ""), "txt_in.cls_token", ("decoder",))
TEXT = Kind("text encoder", ("", "text_encoders."), "llm.model.norm.weight", ("language", "vision"))
VAE = Kind("VAE", (layout.VAE, "first_stage_model.", ""), "decoder.conv_in.weight", ("vae",))

# In the headers of our files alone: a release's, and one file's with all parts.
MARKS = tuple(f'"{start}'.encode() for start in (layout.DECODER, layout.VAE, DECODER.comfy_prefix + DECODER.probe))


@dataclass(frozen=True)
class Part:
    """Where the tensors of one part are: name without prefix -> file."""

    kind: Kind
    prefix: str
    files: Mapping[str, Path]


@dataclass(frozen=True)
class Checkpoint:
    """A checked model: all of its parts.

    tokenizer  folder of the tokenizer's files, or those files; None where none came with the weights
    side       pixels of the sides of the pictures that it was trained on; None for a model that makes any size
    """

    config: OvisConfig
    decoder: Part
    text: Part
    vae: Part
    tokenizer: Path | Mapping[str, bytes] | None
    side: int | None = None


def is_release(folder: Path) -> bool:
    """Whether a folder's config.json says that it is an Ovis-U1."""
    try:
        return _read_json(folder / CONFIG).get("model_type") == "ovis_u1"
    except CheckpointError:
        return False


def why_not(path: Path) -> str:
    """Why a folder, or a file with all parts, is not a usable Ovis-U1.

    Empty for one that is, and for a folder that holds no model's files.
    """
    try:
        if not path.is_dir():
            open_file(path)
            return ""
        names = [entry.name for entry in path.iterdir()]
        if CONFIG in names:
            open_release(path)
            return ""
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error}); check its permissions."
    if any(name.endswith(UNFINISHED) for name in names):
        return f"{path} holds an unfinished download; run Ovis-U1 Download again, or fetch the missing files."
    if any(name.endswith((".safetensors", *(pattern[1:] for pattern in PICKLES))) for name in names):
        return f"{path} has no {CONFIG}; copy the release's {CONFIG} into it."
    return ""


def has_pieces(folder: Path) -> bool:
    """Whether a folder holds files that a release has, beside files of any other name."""
    return any(name in (CONFIG, INDEX, SINGLE) or fnmatch(name, SHARDS) for name in _names(folder))


def looks_like_release(folder: Path, named: bool, holds: Callable[[Path], bool]) -> bool:
    """Whether a folder was meant to be a release of Ovis-U1, not another model.

    named  its name is one of Ovis-U1
    holds  `holds_ours`, or a function that remembers its answers
    """
    names = _names(folder)
    pieces = [name for name in names if name == INDEX or fnmatch(name, SHARDS)]
    if any(holds(folder / name) for name in (*pieces, *(name for name in names if name == SINGLE))):
        return True
    if not named:
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


def holds_ours(file: Path) -> bool:
    """Whether the header of a file, or a release's index, names tensors that only Ovis-U1 has."""
    try:
        if file.suffix == ".json":
            return any(mark in file.read_bytes() for mark in MARKS)
        header = read_header(file)
        return any(mark in header for mark in MARKS)
    except OSError:
        return False


def is_complete(folder: Path) -> bool:
    """Whether a folder is an Ovis-U1 with all of its weight files."""
    try:
        return is_release(folder) and all(file.is_file() for file in _weight_files(folder))
    except CheckpointError:
        return False


def is_single_file(file: Path) -> bool:
    """Whether a file holds all of an Ovis-U1 under ComfyUI's names, as core's CheckpointSave writes it."""
    probes = [f"{kind.comfy_prefix}{kind.probe}" for kind in (DECODER, TEXT, VAE)]
    try:
        return header_mentions(file, probes) and set(probes) <= read_shapes(file).keys()
    except (OSError, CheckpointError):
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
    gone = [name for name in missing if (folder / name).is_symlink()]
    if gone:
        raise CheckpointError(f"{folder}: {some(gone)} are links to missing files; replace them with the files.")
    if missing:
        raise CheckpointError(
            f"{folder} lacks {some(missing)}: the download is not complete; run Ovis-U1 Download "
            "again, or fetch the missing files into that folder."
        )
    shapes = {file: read_shapes(file) for file in files}
    found = [_find(kind, shapes, folder) for kind in (DECODER, TEXT, VAE)]
    parts = [_check(part, config, shapes, folder, f"its {CONFIG}") for part in found]
    own = any(all((folder / name).is_file() for name in names) for names in TOKENIZER_FILES)
    return Checkpoint(config, *parts, folder if own else None)


def open_model(path: Path) -> Checkpoint:
    """`open_release` of a folder, `open_file` of a file."""
    try:
        folder = path.is_dir()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check its permissions.") from error
    return open_release(path) if folder else open_file(path)


def open_file(file: Path) -> Checkpoint:
    """Checks one file with all parts, as core's CheckpointSave writes it from ours. Raises `CheckpointError`."""
    return open_parts(file, file, file)


def open_parts(decoder: Path, text: Path, vae: Path) -> Checkpoint:
    """Checks three files, each of which holds one part, alone or among others.

    The numbers of a part are those that travel with it, of a VAE those of its shapes, otherwise the published model's.
    Raises `CheckpointError` that names the first thing that is wrong.
    """
    found, shapes, sections = [], {}, {}
    for kind, file in ((DECODER, decoder), (TEXT, text), (VAE, vae)):
        shapes[file] = read_shapes(file)
        part = _find(kind, {file: shapes[file]}, file)
        found.append(part)
        sections |= _sections(part, file, shapes[file])
    config = dataclasses.replace(RELEASE, **sections)
    try:
        check_together(config)
    except ConfigError as error:
        raise CheckpointError(f"{decoder}, {text} and {vae} do not belong together: {error}") from error
    parts = [
        _check(part, config, shapes, file, "its config") for part, file in zip(found, (decoder, text, vae), strict=True)
    ]
    prefix = f"{parts[1].prefix}{CARRIED}"
    return Checkpoint(config, *parts, tokenizer_files(lambda name: read_carried(text, f"{prefix}{name}")))


def tokenizer_files(read: Callable[[str], bytes | None]) -> dict[str, bytes] | None:
    """The first whole set of a tokenizer's files; `read` answers None for a file that is not there."""
    for names in TOKENIZER_FILES:
        files = {name: read(name) for name in names}
        if None not in files.values():
            return files
    return None


def _find(kind: Kind, shapes: Mapping[Path, Mapping[str, Any]], source: Path) -> Part:
    """Where a part's tensors are in these files."""
    files = {name: file for file, found in shapes.items() for name in found}
    for prefix in kind.prefixes:
        if f"{prefix}{kind.probe}" in files:
            own = {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}
            return Part(kind, prefix, own)
    raise CheckpointError(
        f"{source}: tensor {kind.prefixes[0]}{kind.probe} missing, so there is no {kind.title} of Ovis-U1 in it. "
        "Choose another file, or download the model again."
    )


def _sections(part: Part, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if part.kind == VAE:
        return {"vae": _vae_config({name: shapes[f"{part.prefix}{name}"] for name in part.files}, file)}
    carried = read_carried(file, f"{part.prefix}{CARRIED}{CONFIG}")
    if carried is None:
        return {}
    try:
        found = load_sections(carried)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error} Save or download it again.") from error
    return {name: found[name] for name in part.kind.sections if name in found}


def _vae_config(shapes: Mapping[str, tuple[int, ...]], file: Path) -> VaeConfig:
    """The numbers of a VAE, in diffusers' or in ComfyUI's naming, from its shapes."""
    for level in ("encoder.down_blocks.{}.resnets.{}.conv1.weight", "encoder.down.{}.block.{}.conv1.weight"):
        if level.format(0, 0) in shapes:
            widths = [shapes[name][0] for i in range(MOST_LEVELS) if (name := level.format(i, 0)) in shapes]
            layers = sum(level.format(0, j) in shapes for j in range(MOST_LEVELS))
            latents = shapes[VAE.probe][1]
            images = shapes["encoder.conv_in.weight"][1] if "encoder.conv_in.weight" in shapes else 0
            if latents == LATENT_CHANNELS and images == 3:
                return VaeConfig(images, images, latents, tuple(widths), layers)
    raise CheckpointError(f"{file}: this VAE is not of SDXL's kind, which Ovis-U1 needs; choose another one.")


def _check(
    part: Part, config: OvisConfig, shapes: Mapping[Path, Mapping[str, tuple[int, ...]]], source: Path, says: str
) -> Part:
    """The part without what does not belong to it, name and shape of every tensor checked.

    A VAE in ComfyUI's naming is checked when it is built.
    """
    if part.kind == DECODER:
        wanted = layout.decoder_shapes(config.decoder)
    elif part.kind == TEXT:
        wanted = layout.text_shapes(config.language, config.vision)
    elif "encoder.down_blocks.0.resnets.0.conv1.weight" in part.files:
        wanted = layout.vae_shapes(config.vae)
    else:
        return part
    missing = []
    for name, shape in wanted.items():
        if name not in part.files:
            missing.append(part.prefix + name)
            continue
        found = shapes[part.files[name]][part.prefix + name]
        if found != shape:
            raise CheckpointError(
                f"{source}: tensor {part.prefix}{name} has shape {list(found)}; {says} asks for {list(shape)}. "
                "Weights and config do not belong together; download both again."
            )
    if missing:
        raise CheckpointError(f"{source}: tensor {some(missing)} missing. Download the model again.")
    layers = [name.removesuffix(WEIGHT) for name in wanted if name.endswith(WEIGHT)]
    scales = [layer + scale for layer in layers for scale in SCALES if layer + scale in part.files]
    for name in scales:
        found = shapes[part.files[name]][part.prefix + name]
        if found not in ((), (1,)):
            raise CheckpointError(
                f"{source}: tensor {part.prefix}{name} has shape {list(found)}; only one scale for a whole matrix is "
                "known. Make the file with scripts/convert.py."
            )
    return dataclasses.replace(part, files={name: part.files[name] for name in (*wanted, *scales)})


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
            f"{folder} holds {some(pickles)} and no safetensors files. Pickles can run code when they are read, so "
            "they are not; download the release's safetensors files."
        )
    if any(folder.glob(SHARDS)) and not (folder / SINGLE).is_file():
        raise CheckpointError(f"{folder} holds a model in pieces and no {INDEX}; copy the release's {INDEX} into it.")
    return [folder / SINGLE]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP) and path.is_symlink():
            raise CheckpointError(f"{path} is a link to a missing file; replace it with the file.") from error
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); it belongs to the release.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object. Download it again.")
    return value


def some(names: list[str]) -> str:
    """Names for a message, not all of many."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
