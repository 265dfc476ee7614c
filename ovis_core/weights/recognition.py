"""Recognises Ovis-U1 by the names of tensors, in a state dict or in the header of a file."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from . import layout
from .components import DECODER, KINDS, TEXT, VAE, Kind
from .release import RELEASE
from .safetensors_file import CheckpointError, header_bytes, header_mentions, read_entries

# Names of tensors, without prefix, that only this component has together; a VAE is looked for only beside a decoder.
PROBES = {
    DECODER: (DECODER.probe, "double_blocks.0.img_self_attn.qkv.weight"),
    TEXT: (TEXT.probe, "visual_tokenizer.head.0.weight", "vte.weight"),
    VAE: (VAE.probe,),
}
# Beginnings of tensor names that only headers of Ovis-U1 contain: of a release, and of one file with all components.
OWN_NAMES = tuple(f'"{start}'.encode() for start in (layout.DECODER, layout.VAE, DECODER.comfy_prefix + DECODER.probe))
RELEASE_FILE = (
    "this is one of the files of the Ovis-U1 release, and all of them are needed; choose the release's folder in "
    "Ovis-U1 Load Model, or convert the folder to one file with scripts/convert.py."
)
NO_DECODER = (
    "this file has Ovis-U1's text encoder and no diffusion model; choose it in Load CLIP or Ovis-U1 Load Parts."
)

Names = Collection[str]  # of tensors, such as a state dict


def has_component(kind: Kind, names: Names) -> bool:
    """Whether the names that only this component has are among these, under one of its prefixes."""
    prefixes = [kind.comfy_prefix] if kind == VAE else kind.prefixes
    return any(all(f"{prefix}{probe}" in names for probe in PROBES[kind]) for prefix in prefixes)


def has_decoder(names: Names) -> bool:
    """Whether there is a decoder. Raises `CheckpointError` for Ovis-U1 without one, and for one file of a release."""
    _refuse_release_file(names)
    if has_component(DECODER, names):
        return True
    if has_component(TEXT, names):
        raise CheckpointError(NO_DECODER)
    return False


def has_text_encoder(names: Names) -> bool:
    """Whether there is a text encoder. Raises `CheckpointError` for one file of a release."""
    _refuse_release_file(names)
    return has_component(TEXT, names)


def _refuse_release_file(names: Names) -> None:
    """Raises `CheckpointError` if all tensors have a release's names. A text encoder alone has these names too."""
    if not names or not all(name in _release_names() for name in names):
        return
    if not has_component(TEXT, names) or any(name.startswith((layout.DECODER, layout.VAE)) for name in names):
        raise CheckpointError(RELEASE_FILE)


@cache
def _release_names() -> frozenset[str]:
    return frozenset(name for name, _ in layout.tensor_shapes(RELEASE)) | {f"{layout.LANGUAGE}lm_head.weight"}


def is_single_file(file: Path) -> bool:
    """Whether a file contains all components of Ovis-U1 under ComfyUI's names, as core's CheckpointSave writes it."""
    probes = [f"{kind.comfy_prefix}{kind.probe}" for kind in KINDS]
    try:
        return header_mentions(file, probes) and set(probes) <= read_entries(file).keys()
    except (OSError, CheckpointError):
        return False


def names_ovis_u1(file: Path) -> bool:
    """Whether the header of a file, or a release's index, names tensors that only Ovis-U1 has."""
    try:
        header = file.read_bytes() if file.suffix == ".json" else header_bytes(file)
    except OSError:
        return False
    return any(name in header for name in OWN_NAMES)
