"""The release's VAE as ComfyUI's own."""

from __future__ import annotations

from collections.abc import Mapping

import comfy.sd
import torch
from comfy.cli_args import args
from comfy.ldm.modules.diffusionmodules.model import AttnBlock, normal_attention, pytorch_attention

from ..weights.config import VaeConfig
from ..weights.lazy_tensors import LazyTensor
from ..weights.safetensors_file import CheckpointError, some
from .layers.partial_loading import keep_patchable


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
            f"{file or 'VAE'}: expected an SDXL VAE, got a VAE of other shapes ({wrong.rstrip('.')}); choose another "
            "file."
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
