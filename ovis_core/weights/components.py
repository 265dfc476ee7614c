"""The three components of a model, their tensors and the tensors' shapes. ComfyUI handles components separately."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import layout
from .config import LATENT_CHANNELS, ConfigError, OvisConfig, VaeConfig, check_together
from .metadata import read_metadata
from .quantized import quantized_entries
from .release import RELEASE
from .safetensors_file import CheckpointError, TensorEntry, some

MOST_LEVELS = 16  # upper limit for a VAE
ONLY_QUANTIZED = ("I8", "U8", "F8_E8M0")  # dtypes of weights that only a quantized layer has


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


def describe(
    components: Mapping[Kind, Component], sources: Mapping[Kind, object]
) -> tuple[OvisConfig, dict[str, bytes] | None]:
    """The config of components without a config.json, and the tokenizer's files from the text encoder's metadata.

    A component's config comes from its metadata, a VAE's from its shapes; otherwise, and for a component that is not
    there, the published model's is used. Raises `CheckpointError` if these cannot be used or do not match.
    """
    sections: dict[str, Any] = {}
    tokenizer = None
    if VAE in components:
        sections["vae"] = _vae_config(components[VAE], sources[VAE])
    for kind in (kind for kind in (DECODER, TEXT) if kind in components):
        try:
            own, tokenizer = read_metadata(components[kind].entries)
        except ConfigError as error:
            raise CheckpointError(f"{sources[kind]}: {error}; save or download the file again.") from error
        sections |= {name: own[name] for name in kind.sections if name in own}
    config = dataclasses.replace(RELEASE, **sections)
    try:
        check_together(_completed(config, components))
    except ConfigError as error:
        *others, last = map(str, sources.values())
        names = f"{', '.join(others)} and {last} do not match" if others else last
        raise CheckpointError(f"{names}: {error}; choose the parts of one model.") from error
    return config, tokenizer


def _completed(config: OvisConfig, components: Mapping[Kind, Component]) -> OvisConfig:
    """The config with widths that match in the place of a missing decoder or text encoder."""
    decoder, language = config.decoder, config.language
    if TEXT not in components:
        language = dataclasses.replace(language, hidden_size=decoder.context_in_dim // 2)
    elif DECODER not in components:
        decoder = dataclasses.replace(decoder, context_in_dim=2 * language.hidden_size)
    return dataclasses.replace(config, decoder=decoder, language=language)


def _vae_config(vae: Component, source: object) -> VaeConfig:
    """The config of a VAE with diffusers' or ComfyUI's names, from its shapes. Raises `CheckpointError`."""
    shapes = {name: entry.shape for name, entry in vae.entries.items()}
    for level in ("encoder.down_blocks.{}.resnets.{}.conv1.weight", "encoder.down.{}.block.{}.conv1.weight"):
        if level.format(0, 0) in shapes:
            widths = [shapes[name][0] for i in range(MOST_LEVELS) if (name := level.format(i, 0)) in shapes]
            layers = sum(level.format(0, j) in shapes for j in range(MOST_LEVELS))
            latents = shapes[VAE.probe][1]
            images = shapes["encoder.conv_in.weight"][1] if "encoder.conv_in.weight" in shapes else 0
            if latents == LATENT_CHANNELS and images == 3:
                return VaeConfig(images, images, latents, tuple(widths), layers)
    raise CheckpointError(f"{source}: expected an SDXL VAE, got another kind of VAE; choose another file.")


def check(component: Component, config: OvisConfig, source: object, config_name: str) -> Component:
    """Checks name and shape of every tensor; returns the component without tensors that do not belong to it.

    A VAE with ComfyUI's names is checked when it is built.

    config_name  the config's name in messages
    """
    if component.kind == VAE and "encoder.down_blocks.0.resnets.0.conv1.weight" not in component.entries:
        return component
    wanted = component.kind.shapes(config)
    quantized = quantized_entries(component.entries, wanted, source)
    missing = []
    for name, shape in wanted.items():
        entry = component.entries.get(name)
        if entry is None:
            missing.append(component.prefix + name)
        elif entry.shape != shape and name not in quantized:
            raise CheckpointError(
                f"{source}: tensor {entry.name} has shape {list(entry.shape)}, but {config_name} requires "
                f"{list(shape)}; download the weights and the config again."
            )
        elif entry.dtype in ONLY_QUANTIZED and name not in quantized:
            raise CheckpointError(
                f"{source}: tensor {entry.name}: expected a floating-point dtype, got {entry.dtype} without the format "
                "of its layer; choose another file."
            )
    if missing:
        raise CheckpointError(f"{source}: missing tensor {some(missing)}; download the model again.")
    return dataclasses.replace(component, entries={name: component.entries[name] for name in wanted} | quantized)
