"""The full size and a small one, and random weights of that or a smaller size: nothing needs to be downloaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ovis_core import layout
from ovis_core.carried import carried
from ovis_core.checkpoint import DECODER, TEXT, VAE
from ovis_core.config import OvisConfig
from ovis_core.layout import tensor_shapes
from ovis_core.release import RELEASE

FULL = RELEASE

# For machines without a GPU. The vocabulary stays, because the tokenizer's does.
SMALL = dataclasses.replace(
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


def random_weights(
    config: OvisConfig, parts: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Tensors whose names start with one of `parts`, distributed as by the rule of tests/golden/README.md."""
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
    return weights


def write_file(config: OvisConfig, file: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """A random model as one file, named as ComfyUI names its tensors."""
    prefixes = {layout.DECODER: DECODER.comfy_prefix, layout.VAE: VAE.comfy_prefix, "": TEXT.comfy_prefix}
    named = {}
    for name, tensor in random_weights(config, ("",), dtype, torch.device("cpu")).items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        named[prefixes[prefix] + name.removeprefix(prefix)] = tensor
    for kind in (DECODER, TEXT):
        sections = {name: getattr(config, name) for name in kind.sections}
        named |= {kind.comfy_prefix + name: tensor for name, tensor in carried(**sections).items()}
    save_file(named, file, metadata={"format": "pt"})
