"""The release's numbers, and random weights of that or a smaller size: nothing needs to be downloaded."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ovis_core.config import DecoderConfig, LanguageConfig, OvisConfig, VaeConfig, VisionConfig
from ovis_core.layout import tensor_shapes

FULL = OvisConfig(
    language=LanguageConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=40960,
    ),
    vision=VisionConfig(
        vocab_size=65536,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_channels=3,
        image_size=448,
        patch_size=14,
        hidden_stride=2,
        rms_norm_eps=1e-5,
        qkv_bias=False,
        use_bias=False,
    ),
    decoder=DecoderConfig(
        in_channels=16,
        out_channels=16,
        vec_in_dim=1536,
        context_in_dim=4096,
        hidden_size=1536,
        mlp_ratio=4.0,
        num_heads=12,
        depth=6,
        depth_single_blocks=12,
        axes_dim=(16, 56, 56),
        theta=10000,
        qkv_bias=True,
        base_shift=0.5,
        max_shift=1.15,
    ),
    vae=VaeConfig(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(128, 256, 512, 512), layers_per_block=2
    ),
)

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
