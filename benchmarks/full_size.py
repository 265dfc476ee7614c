"""Configs of the full size and of two smaller models, with random weights, so that no download is needed."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ovis_core.weights import layout
from ovis_core.weights.components import DECODER, TEXT, VAE
from ovis_core.weights.config import OvisConfig
from ovis_core.weights.layout import tensor_shapes
from ovis_core.weights.metadata import metadata
from ovis_core.weights.release import RELEASE

FULL = RELEASE
CPU = torch.device("cpu")

TOKENIZER = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "preprocessor_config.json",
)

# For memory: fewer layers, with decoder and VAE at full width, so that weights take most of the memory. The vocabulary
# keeps its size, because the tokenizer does.
SHALLOW = dataclasses.replace(
    FULL,
    language=dataclasses.replace(
        FULL.language,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
    ),
    vision=dataclasses.replace(FULL.vision, vocab_size=8192, hidden_size=512, num_hidden_layers=4),
    decoder=dataclasses.replace(FULL.decoder, context_in_dim=1024, depth=2, depth_single_blocks=4),
)

# For complete images on a CPU: fewer and narrower layers.
NARROW = dataclasses.replace(
    SHALLOW,
    decoder=dataclasses.replace(SHALLOW.decoder, vec_in_dim=512, hidden_size=512, num_heads=4),
    vae=dataclasses.replace(FULL.vae, block_out_channels=(32, 64, 128, 128)),
)


def random_weights(
    config: OvisConfig, parts: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Tensors whose names start with one of `parts`, distributed as by the rule of tests/golden/README.md.

    device  makes the random numbers; the tensors are in RAM
    """
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, shape in tensor_shapes(config):
        if not name.startswith(parts):
            continue
        s = torch.empty(shape, dtype=dtype, device=device).uniform_(-1.0, 1.0, generator=generator)
        if name.endswith(("pos_embed", "cls_token")):
            weights[name] = s.mul_(0.5)
        elif len(shape) == 1:
            weights[name] = s.mul_(0.1) if name.endswith(".bias") else s.mul_(0.1).add_(1.0)
        else:
            weights[name] = s.mul_((3 * shape[0] / s.numel()) ** 0.5)
        weights[name] = weights[name].cpu()
    return weights


def write_file(config: OvisConfig, file: Path) -> None:
    """A random model in bfloat16 as one file, named as ComfyUI names its tensors."""
    prefixes = {layout.DECODER: DECODER.comfy_prefix, layout.VAE: VAE.comfy_prefix, "": TEXT.comfy_prefix}
    named = {}
    for name, tensor in random_weights(config, ("",), torch.bfloat16, CPU).items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        named[prefixes[prefix] + name.removeprefix(prefix)] = tensor
    for kind in (DECODER, TEXT):
        sections = {name: getattr(config, name) for name in kind.sections}
        named |= {kind.comfy_prefix + name: tensor for name, tensor in metadata(**sections).items()}
    save_file(named, file, metadata={"format": "pt"})


def write_release(
    config: OvisConfig,
    folder: Path,
    dtype: torch.dtype,
    tokenizer: Path,
    reference: Path | None = None,
    device: torch.device = CPU,
) -> Path:
    """A random model as a release's folder, for our code and the authors'; returns its weights file.

    tokenizer  folder with Qwen2.5's files
    reference  a release's folder whose tokenizer and config are used; our values replace those in the config
    device     makes the random numbers: a GPU is faster, and makes other numbers
    """
    for source, names in ((tokenizer, ("vocab.json", "merges.txt")), (reference, TOKENIZER)):
        for name in names:
            if source and (source / name).is_file():
                shutil.copy(source / name, folder / name)
    text = (reference / "config.json").read_text(encoding="utf-8") if reference else "{}"
    raw = _merged(json.loads(text), _sections(config, str(dtype).removeprefix("torch.")))
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    file = folder / "model.safetensors"
    save_file(random_weights(config, ("",), dtype, device), file, metadata={"format": "pt"})
    return file


def _sections(config: OvisConfig, dtype: str) -> dict[str, Any]:
    """The config in the sections of a release's `config.json`; the authors' code reads a dtype in each section."""
    parts = {name: {"torch_dtype": dtype, **values} for name, values in dataclasses.asdict(config).items()}
    backbone = parts["vision"]
    return {
        "model_type": "ovis_u1",
        "torch_dtype": dtype,
        "hidden_size": config.language.hidden_size,
        "llm_attn_implementation": "sdpa",  # the default would be the slow attention, or flash-attn
        "llm_config": parts["language"],
        "visual_tokenizer_config": {"vocab_size": backbone.pop("vocab_size"), "backbone_config": backbone},
        "visual_generator_config": {**parts["decoder"], "vae_config": parts["vae"]},
    }


def _merged(raw: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`raw` with the entries of `own` in their places."""
    nested = {key: _merged(raw.get(key, {}), value) for key, value in own.items() if isinstance(value, dict)}
    return {**raw, **own, **nested}
