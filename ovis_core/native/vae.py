"""The release's VAE as ComfyUI's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.sd
import comfy.utils
import torch
from comfy.cli_args import args
from comfy.ldm.modules.diffusionmodules.model import AttnBlock, normal_attention, pytorch_attention
from torch import Tensor

from ..pixels import restore
from ..weights.config import VaeConfig
from ..weights.lazy_tensors import LazyTensor
from ..weights.safetensors_file import CheckpointError, some
from .conditions import SOURCE, EditSource
from .partial_loading import keep_patchable


def build_vae(config: VaeConfig, tensors: Mapping[str, LazyTensor], device: torch.device | None = None) -> comfy.sd.VAE:
    """VAE from tensors with diffusers' or ComfyUI's names, without prefix, with the config's widths.

    device  the VAE runs on it; None: ComfyUI chooses it

    Raises `CheckpointError` if tensors are missing or of another shape.
    """
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
    weights = {name: tensor.read_with_source() for name, tensor in tensors.items()}
    params = {"ddconfig": ddconfig, "embed_dim": config.latent_channels}
    file = next(iter(tensors.values())).file
    try:
        vae = comfy.sd.VAE(sd=weights, device=device, config={"params": params})
    except RuntimeError as error:
        if "size mismatch" not in str(error):
            raise
        wrong = next(line.strip() for line in str(error).splitlines() if "size mismatch" in line)
        raise CheckpointError(
            f"{file or 'VAE'}: expected an SDXL VAE ({wrong.rstrip('.')}); choose another file."
        ) from error
    missing = sorted(set(vae.get_sd()) - set(tensors))
    if missing and "encoder.down.0.block.0.conv1.weight" in tensors:
        raise CheckpointError(
            f"{file}: missing tensor {some(missing)} of the VAE; choose another file, or download it again."
        )
    if vae.device.type == "cpu" and not args.use_split_cross_attention:
        _attend_by_torch(vae)
    keep_patchable(vae.patcher)
    return vae


def _attend_by_torch(vae: comfy.sd.VAE) -> None:
    """Uses torch's attention, because ComfyUI's own is slower on a CPU."""
    for block in vae.first_stage_model.modules():
        if isinstance(block, AttnBlock) and block.optimized_attention is normal_attention:
            block.optimized_attention = pytorch_attention


def decode(vae: comfy.sd.VAE, latent: dict[str, Any], restore_size: bool = False) -> Tensor:
    """IMAGE (B, H, W, 3) of a LATENT; with `restore_size` at the size of the edit's source.

    If an edit's latent has a noise mask and still equals the source's outside of it, every pixel there comes from the
    source, encoded and decoded by itself: the VAE's norms and attention would spread a change inside the mask over the
    whole image. Raises ValueError with `restore_size` if the LATENT has no source size, or its aspect ratio is
    not that of the source.
    """
    samples: Tensor = latent["samples"]
    source: EditSource | None = latent.get(SOURCE)
    if restore_size:
        _check_size(samples, source)

    def pixels(samples: Tensor) -> Tensor:
        images = vae.decode(samples)
        return restore(images, source.height, source.width) if restore_size else images

    images = pixels(samples)
    mask = latent.get("noise_mask")
    if source is None or mask is None:
        return images
    kept = _kept_sources(samples, source.samples, comfy.utils.reshape_mask(mask, samples.shape))
    round_trips = {index: pixels(source.samples[index : index + 1])[0] for index in set(kept) - {None}}
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(images.device, torch.float32)
    inside = torch.nn.functional.interpolate(mask, images.shape[1:3], mode="bilinear").movedim(1, -1) > 0
    inside = comfy.utils.repeat_to_batch_size(inside, images.shape[0])
    return torch.stack(
        [
            image if index is None else torch.where(within, image, round_trips[index])
            for image, within, index in zip(images, inside, kept, strict=True)
        ]
    )


def _check_size(samples: Tensor, source: EditSource | None) -> None:
    """Raises ValueError if latents have no source image or a different aspect ratio; scaled latents are accepted."""
    if source is None:
        raise ValueError(
            "samples: expected the latent of an edit, because restore_size is on, got a latent that is not from an "
            "edit; connect Ovis-U1 Sampler with the latent of Ovis-U1 Edit Encode, or turn off restore_size."
        )
    (height, width), (own_height, own_width) = samples.shape[-2:], source.samples.shape[-2:]
    if abs(height * own_width - width * own_height) > max(own_height, own_width):
        raise ValueError(
            "samples: expected the aspect ratio of the edit's source image, because restore_size is on, got a "
            "different one; remove the node that changes the latent's shape, or turn off restore_size."
        )


def _kept_sources(samples: Tensor, sources: Tensor, mask: Tensor) -> list[int | None]:
    """For each image of a batch the index of the source that it still equals outside the mask, or None.

    Latents may have been repeated, selected, flipped, or sampled again with another mask since the edit began.
    """
    if samples.shape[1:] != sources.shape[1:]:
        return [None] * len(samples)
    limit = 1e-4 * float(sources.abs().max())
    outside = (mask == 0).to(samples.device)

    def kept(image: Tensor, around: Tensor) -> int | None:
        if not around.any():
            return None
        gaps = ((image - sources.to(samples)) * around).abs().amax(dim=(1, 2, 3))
        return int(gaps.argmin()) if float(gaps.min()) <= limit else None

    return [kept(image, around) for image, around in zip(samples, outside, strict=True)]
