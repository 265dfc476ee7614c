"""The three components of a model, which ComfyUI handles separately, and their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import layout
from .config import OvisConfig
from .safetensors_file import CheckpointError, TensorEntry


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    title     its name in messages
    prefixes  of its tensors: in a release, in ComfyUI, and if it differs in a file with only this component
    probe     name, without prefix, of a tensor by which it is recognised
    sections  of the config that it needs
    shapes    config -> name without prefix -> shape of each tensor
    """

    title: str
    prefixes: tuple[str, ...]
    probe: str
    sections: tuple[str, ...]
    shapes: Callable[[OvisConfig], dict[str, tuple[int, ...]]]

    @property
    def comfy_prefix(self) -> str:
        """The prefix of its tensors in ComfyUI."""
        return self.prefixes[1]


DECODER = Kind(
    "diffusion model",
    (layout.DECODER, "model.diffusion_model.", ""),
    "txt_in.cls_token",
    ("decoder",),
    lambda config: layout.decoder_shapes(config.decoder),
)
TEXT = Kind(
    "text encoder",
    ("", "text_encoders."),
    "llm.model.norm.weight",
    ("language", "vision"),
    lambda config: layout.text_shapes(config.language, config.vision),
)
VAE = Kind(
    "VAE",
    (layout.VAE, "first_stage_model.", ""),
    "decoder.conv_in.weight",
    ("vae",),
    lambda config: layout.vae_shapes(config.vae),
)
KINDS = (DECODER, TEXT, VAE)


@dataclass(frozen=True)
class Component:
    """The tensors of one component: name without prefix -> entry."""

    kind: Kind
    prefix: str
    entries: Mapping[str, TensorEntry]

    @property
    def files(self) -> dict[str, Path | None]:
        """Name without prefix -> file."""
        return {name: entry.file for name, entry in self.entries.items()}


def find(kind: Kind, entries: Mapping[str, TensorEntry], source: object) -> Component:
    """Finds a component among these tensors and does not check it yet. Raises `CheckpointError` if it is missing."""
    for prefix in kind.prefixes:
        if f"{prefix}{kind.probe}" in entries:
            own = {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}
            return Component(kind, prefix, own)
    raise CheckpointError(
        f"{source}: missing tensor {kind.prefixes[0]}{kind.probe}, so it has no Ovis-U1 {kind.title}; choose another "
        "file, or download the model again."
    )
