"""The release's VAE as ComfyUI's own."""

from __future__ import annotations

from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..config import VaeConfig
from ..pixels import restore
from .conditions import SOURCE, EditSource


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


def decode(vae: comfy.sd.VAE, latent: dict[str, Any], restore_size: bool = False) -> Tensor:
    """IMAGE (B, H, W, 3) of a LATENT; with `restore_size` at the size of the edit's source.

    Where an edit's latent has a noise mask, every pixel outside it is that of the source's own round trip: a VAE's
    norms and attention would carry what changed inside over the whole image. Raises ValueError when the size is asked
    for and the LATENT does not carry it.
    """
    source: EditSource | None = latent.get(SOURCE)
    if restore_size and source is None:
        raise ValueError(
            "samples: they do not say the size of a source image; sample the latent of Ovis-U1 Edit Encode, or turn "
            "restore_size off."
        )

    def pixels(samples: Tensor) -> Tensor:
        images = vae.decode(samples)
        return restore(images, source.height, source.width) if restore_size else images

    images = pixels(latent["samples"])
    mask = latent.get("noise_mask")
    if source is None or mask is None or source.samples.shape != latent["samples"].shape:
        return images
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(images.device, torch.float32)
    inside = torch.nn.functional.interpolate(mask, images.shape[1:3], mode="bilinear") > 0
    inside = comfy.utils.repeat_to_batch_size(inside.movedim(1, -1), images.shape[0])
    return torch.where(inside, images, pixels(source.samples))
