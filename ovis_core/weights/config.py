"""The values of a checkpoint's `config.json` that the networks need."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from ..special_tokens import Control

# Names for the types of the dataclasses' fields, in messages.
KINDS = {
    "int": "a positive whole number",
    "float": "a positive number",
    "bool": "true or false",
    "tuple[int, ...]": "a list of positive whole numbers",
}


# A config.json has these values too; no others are supported.
PATCH_SIZE = 14  # pixels per side of one patch of the visual tokenizer
HIDDEN_STRIDE = 2  # patches per side of one visual token
LATENT_CHANNELS = 4
VAE_LEVELS = 4  # each at half the size of the one before

# Constants that are not in a config.json.
LATENT_SCALE = 2 ** (VAE_LEVELS - 1)  # pixels per side of one latent
LATENT_PATCH = 2  # latents per side of one decoder token
TIME_WIDTH = 256  # of the decoder's sinusoidal time embedding
REFINER_DEPTH = 2
INDICATORS = 4  # rows of the visual embedding table that are not words of the visual tokenizer's head

# Upper limits, far above any Ovis-U1, so that a broken config cannot use all of the machine's time and memory.
LAYERS = ("num_hidden_layers", "depth", "depth_single_blocks", "layers_per_block")
MAX_LAYERS = 1024
MAX_VALUE = 1 << 24
MAX_AXES = 16


class ConfigError(ValueError):
    """A `config.json` that does not describe an Ovis-U1 which this package can run.

    The message names the entry. Callers add the file before it, and a remedy after it.
    """

    __module__ = "builtins"  # ComfyUI shows the module before the name, and the pack's is a long path


@dataclass(frozen=True)
class LanguageConfig:
    """Qwen3 (`llm_config`)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int


@dataclass(frozen=True)
class VisionConfig:
    """AIMv2 visual tokenizer (`visual_tokenizer_config` with its `backbone_config`)."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    patch_size: int
    hidden_stride: int
    rms_norm_eps: float
    qkv_bias: bool
    use_bias: bool


@dataclass(frozen=True)
class DecoderConfig:
    """Yak, the diffusion decoder (`visual_generator_config`)."""

    in_channels: int
    out_channels: int
    vec_in_dim: int
    context_in_dim: int
    hidden_size: int
    mlp_ratio: float
    num_heads: int
    depth: int
    depth_single_blocks: int
    axes_dim: tuple[int, ...]
    theta: int
    qkv_bias: bool
    base_shift: float
    max_shift: float


@dataclass(frozen=True)
class VaeConfig:
    """diffusers' `AutoencoderKL` (`visual_generator_config.vae_config`)."""

    in_channels: int
    out_channels: int
    latent_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int


@dataclass(frozen=True)
class OvisConfig:
    """The config of a complete model."""

    language: LanguageConfig
    vision: VisionConfig
    decoder: DecoderConfig
    vae: VaeConfig


def read_config(config: dict[str, Any]) -> OvisConfig:
    """The config from a release's `config.json`.

    Raises `ConfigError`, naming the entry, if one is missing or has an unsupported value.
    """
    if config.get("model_type") != "ovis_u1":
        raise ConfigError(f"model_type: expected 'ovis_u1', got {_shown(config.get('model_type'))}")
    llm = _Section(config, "llm_config")
    visual = _Section(config, "visual_tokenizer_config")
    backbone = _Section(visual.values, "backbone_config", visual.name)
    generator = _Section(config, "visual_generator_config")
    vae = _Section(generator.values, "vae_config", generator.name)

    llm.expect("model_type", "qwen3")
    llm.expect("use_sliding_window", False)
    llm.expect("rope_scaling", None)
    llm.expect("attention_bias", False)
    llm.expect("hidden_act", "silu")
    visual.expect("tokenize_function", "softmax")
    visual.expect("drop_cls_token", False)
    backbone.expect("disable_rope", False)
    backbone.expect("preserve_original_pe", True)
    backbone.expect("interpolate_pe_method", "two_dim")
    backbone.expect("fullatt_block_indexes", None)
    backbone.expect("temporal_patch_size", 1)
    generator.expect("txt_type", "refiner")
    generator.expect("guidance_embed", False)
    generator.expect("timestep_shift", True)
    vae.expect("norm_num_groups", 32)
    vae.expect("scaling_factor", 0.13025)
    vae.expect("shift_factor", None)

    result = OvisConfig(
        language=LanguageConfig(**llm.fields(LanguageConfig)),
        vision=VisionConfig(**backbone.fields(VisionConfig, vocab_size=visual["vocab_size"])),
        decoder=DecoderConfig(**generator.fields(DecoderConfig)),
        vae=VaeConfig(**vae.fields(VaeConfig)),
    )
    check_together(result)
    return result


def check_together(config: OvisConfig) -> None:
    """Raises `ConfigError` if values of the parts do not match each other, or are not supported."""
    decoder, language = config.decoder, config.language
    if decoder.context_in_dim != 2 * language.hidden_size:
        raise ConfigError(
            f"visual_generator_config.context_in_dim: expected twice llm_config.hidden_size ({language.hidden_size}), "
            f"got {decoder.context_in_dim}"
        )
    packed = LATENT_CHANNELS * LATENT_PATCH**2
    for path, part, name, right in (
        ("visual_tokenizer_config.backbone_config", config.vision, "patch_size", PATCH_SIZE),
        ("visual_tokenizer_config.backbone_config", config.vision, "hidden_stride", HIDDEN_STRIDE),
        ("visual_tokenizer_config.backbone_config", config.vision, "num_channels", 3),
        ("visual_generator_config", decoder, "in_channels", packed),
        ("visual_generator_config", decoder, "out_channels", packed),
        ("visual_generator_config", decoder, "vec_in_dim", decoder.hidden_size),
        ("visual_generator_config.vae_config", config.vae, "latent_channels", LATENT_CHANNELS),
    ):
        found = getattr(part, name)
        if found != right:
            raise ConfigError(f"{path}.{name}: expected {right}, got {found}")
    if len(decoder.axes_dim) != 3 or any(dim % 2 for dim in decoder.axes_dim):
        raise ConfigError(
            f"visual_generator_config.axes_dim: expected three even numbers, got {_shown(list(decoder.axes_dim))}"
        )
    if language.num_attention_heads % language.num_key_value_heads:
        raise ConfigError(
            "llm_config.num_attention_heads: expected a multiple of num_key_value_heads "
            f"({language.num_key_value_heads}), got {language.num_attention_heads}"
        )
    if language.vocab_size <= max(Control):
        raise ConfigError(f"llm_config.vocab_size: expected more than {int(max(Control))}, got {language.vocab_size}")
    if config.vision.hidden_size % config.vision.num_attention_heads:
        raise ConfigError(
            "visual_tokenizer_config.backbone_config.hidden_size: expected a multiple of num_attention_heads "
            f"({config.vision.num_attention_heads}), got {config.vision.hidden_size}"
        )
    if sum(decoder.axes_dim) * decoder.num_heads != decoder.hidden_size:
        raise ConfigError(
            "visual_generator_config.axes_dim: expected numbers that add up to hidden_size / num_heads "
            f"({decoder.hidden_size} / {decoder.num_heads}), got {list(decoder.axes_dim)}"
        )
    if len(config.vae.block_out_channels) != VAE_LEVELS:
        raise ConfigError(
            f"visual_generator_config.vae_config.block_out_channels: expected {VAE_LEVELS} numbers, because latents "
            f"are {LATENT_SCALE} times smaller than the image, got {len(config.vae.block_out_channels)}"
        )


SECTIONS: dict[str, type] = {
    "language": LanguageConfig,
    "vision": VisionConfig,
    "decoder": DecoderConfig,
    "vae": VaeConfig,
}


def dump_sections(**sections: Any) -> bytes:
    """Configs of some parts as JSON, to be stored with their weights; `sections` are fields of `OvisConfig`."""
    return json.dumps({name: asdict(section) for name, section in sections.items()}).encode()


def load_sections(data: bytes | str) -> dict[str, Any]:
    """The output of `dump_sections` -> fields of `OvisConfig`. Raises `ConfigError`."""
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the stored config is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError("the stored config is not a JSON object")
    return {name: kind(**_Section(values, name).fields(kind)) for name, kind in SECTIONS.items() if values.get(name)}


class _Section:
    """One object of config.json that knows its own path, for messages."""

    def __init__(self, parent: dict[str, Any], key: str, path: str = "") -> None:
        self.name = f"{path}.{key}" if path else key
        values = parent.get(key)
        if values is None:
            raise ConfigError(f"{self.name} is missing")
        if not isinstance(values, dict):
            raise ConfigError(f"{self.name}: expected an object, got {_shown(values)}")
        self.values: dict[str, Any] = values

    def __getitem__(self, key: str) -> Any:
        if key not in self.values:
            raise ConfigError(f"{self.name}.{key} is missing")
        return self.values[key]

    def expect(self, key: str, value: Any) -> None:
        """Raises `ConfigError` if an entry has another value. A missing entry counts as the expected value."""
        found = self.values.get(key, value)
        if found != value:
            raise ConfigError(f"{self.name}.{key}: expected {value!r}, got {_shown(found)}")

    def fields(self, cls: type, **given: Any) -> dict[str, Any]:
        """The values for a dataclass's fields, lists as tuples."""
        values = {}
        for name, field in cls.__dataclass_fields__.items():
            value = given[name] if name in given else self[name]
            if not _fits(value, field.type):
                raise ConfigError(f"{self.name}.{name}: expected {KINDS[field.type]}, got {_shown(value)}")
            maximum = MAX_LAYERS if name in LAYERS else MAX_VALUE
            if any(number > maximum for number in (value if isinstance(value, list) else [value])):
                raise ConfigError(f"{self.name}.{name}: expected at most {maximum}, got {_shown(value)}")
            values[name] = tuple(value) if isinstance(value, list) else value
        return values


def _shown(value: Any) -> str:
    """A value for a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fits(value: Any, kind: str) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if kind == "int":
        return whole
    if kind == "float":
        return whole or (isinstance(value, float) and value > 0)
    if kind == "bool":
        return isinstance(value, bool)
    return isinstance(value, list) and len(value) <= MAX_AXES and all(_fits(item, "int") for item in value)
