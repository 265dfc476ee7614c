"""The release's VAE as ComfyUI's own."""

from __future__ import annotations

import comfy.sd
from torch import Tensor

from ..config import VaeConfig


def build_vae(config: VaeConfig, weights: dict[str, Tensor]) -> comfy.sd.VAE:
    """VAE from the release's weights (diffusers' names, without prefix), with the widths that the config says."""
    base = config.block_out_channels[0]
    ddconfig = {
        "double_z": True,
        "z_channels": config.latent_channels,
        "resolution": 256,
        "in_channels": config.in_channels,
        "out_ch": config.out_channels,
        "ch": base,
        "ch_mult": [width // base for width in config.block_out_channels],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    return comfy.sd.VAE(sd=weights, config={"params": {"ddconfig": ddconfig, "embed_dim": config.latent_channels}})
