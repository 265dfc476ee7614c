"""Checks the components of a model: config, names, shapes, dtypes and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from .components import DECODER, TEXT, VAE, Component, Kind
from .config import LATENT_CHANNELS, ConfigError, OvisConfig, VaeConfig, check_together
from .layer_formats import quantized_entries
from .lazy_tensors import TensorReader
from .metadata import read_metadata
from .release import RELEASE
from .safetensors_file import CheckpointError, TensorEntry, some
from .values import is_finite

MAX_LEVELS = 16  # upper limit for a VAE
QUANTIZED_DTYPES = ("I8", "U8", "F8_E8M0")  # of weights that only a quantized layer has


def config_and_tokenizer(
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
    """The config with widths that match in place of a missing decoder or text encoder."""
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
            widths = [shapes[name][0] for i in range(MAX_LEVELS) if (name := level.format(i, 0)) in shapes]
            layers = sum(level.format(0, j) in shapes for j in range(MAX_LEVELS))
            latents = shapes[VAE.probe][1]
            images = shapes["encoder.conv_in.weight"][1] if "encoder.conv_in.weight" in shapes else 0
            if latents == LATENT_CHANNELS and images == 3:
                return VaeConfig(images, images, latents, tuple(widths), layers)
    raise CheckpointError(f"{source}: expected an SDXL VAE, got another kind of VAE; choose another file.")


def check_component(component: Component, config: OvisConfig, source: object, config_name: str) -> Component:
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
        elif entry.dtype in QUANTIZED_DTYPES and name not in quantized:
            raise CheckpointError(
                f"{source}: tensor {entry.name}: expected a floating-point dtype, got {entry.dtype} without the format "
                "of its layer; choose another file."
            )
    if missing:
        raise CheckpointError(f"{source}: missing tensor {some(missing)}; download the model again.")
    return dataclasses.replace(component, entries={name: component.entries[name] for name in wanted} | quantized)


def check_values(entries: Iterable[TensorEntry]) -> None:
    """Reads these tensors. Raises `CheckpointError` for NaN or infinity."""
    read = TensorReader()
    for entry in entries:
        if entry.data is None and not is_finite(read(entry)):
            raise CheckpointError(
                f"{entry.file}: tensor {entry.name} contains NaN or infinity, so the file is damaged; download it "
                "again."
            )
