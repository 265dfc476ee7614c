"""Yak, the diffusion decoder: latents, time and refined text -> velocity (report, 2.1).

FLUX's layout of double- and single-stream blocks, with a second attention over the image stream alone in each
double block. Weights have the release's names, except the scales of the QK norms (`weight` for `scale`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.config import TIME_WIDTH, DecoderConfig
from .layers import Layers
from .packing import grid_size, pack, unpack
from .patches import (
    has_hooks,
    may_keep_tensors,
    patched_attention,
    patched_input,
    run_double,
    run_single,
    scaled_positions,
)
from .positions import RotaryTables, positions
from .refiner import Refiner
from .rotary import pair_table

NORM_EPS = 1e-6


class Decoder(nn.Module):
    """The denoising network, refiner included."""

    def __init__(self, config: DecoderConfig, layers: Layers | None = None) -> None:
        super().__init__()
        layers = layers or Layers()
        hidden = config.hidden_size
        self.config = config
        self.img_in = layers.linear(config.in_channels, hidden)
        self.time_in = Embedder(TIME_WIDTH, hidden, layers)
        self.vector_in = Embedder(config.vec_in_dim, hidden, layers)
        self.txt_in = Refiner(config.context_in_dim, hidden, 2 * config.num_heads, layers)
        self.double_blocks = nn.ModuleList(DoubleBlock(config, layers) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(config, layers) for _ in range(config.depth_single_blocks))
        self.final_layer = FinalLayer(hidden, config.out_channels, layers)
        self.rotary_tables = RotaryTables(config.axes_dim, config.theta)

    def refine(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the refiner, which does not depend on the time: once per condition.

        condition (B, L, context_in_dim) -> text tokens (B, L, hidden), vector (B, hidden) added to the time's.
        """
        tokens, pooled = self.txt_in(condition)
        return tokens, self.vector_in(pooled)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor,
        ref_latents: Sequence[Tensor] = (),
        transformer_options: dict[str, Any] | None = None,
        text_lengths: Tensor | None = None,
    ) -> Tensor:
        """Velocity dx/dt of latents x at time t.

        x            (B, 4, H, W) latents in model space, at time `timestep` (B,): 1 noise, 0 image
        context, y   (B, L, hidden) text tokens and (B, hidden) vector, from `refine`
        ref_latents  reference images' latents (B, 4, h, w) in model space; the n-th has index n on the first axis
        text_lengths (B,) int64: text tokens after the first `text_lengths[i]` are masked; None: none are
        returns      (B, 4, H, W)

        `transformer_options` contains ComfyUI's patches, see `patches.py`.
        """
        options = dict(transformer_options or {})
        patches = options.get("patches", {})
        replace = options.get("patches_replace", {}).get("dit", {})

        height, width = x.shape[-2:]
        image_length = math.prod(grid_size(x))
        images = (x, *ref_latents)
        grids = tuple((index, *grid_size(image)) for index, image in enumerate(images))
        img = self.img_in(torch.cat([pack(image) for image in images], dim=1))
        txt = context
        # Every modulation begins with this SiLU.
        vec = F.silu(self.time_in(time_embedding(timestep, TIME_WIDTH).to(img.dtype)) + y)

        scaling = options.get("rope_options")
        if scaling or patches.get("post_input"):
            ids = positions(txt.shape[1], grids, x.device)
            if scaling:
                ids = scaled_positions(ids, slice(txt.shape[1], txt.shape[1] + image_length), scaling)
            img, txt, ids = patched_input(patches.get("post_input", ()), img, txt, ids, options)
            pe = pair_table(ids, self.config.axes_dim, self.config.theta)
        else:
            pe = self.rotary_tables(txt.shape[1], grids, x.device)
            if patches or replace:
                pe = pe.clone()  # patches may modify it
        mask = None if text_lengths is None else padding_mask(text_lengths, txt.shape[1], pe.shape[2], img.dtype)

        options |= {"total_blocks": len(self.double_blocks), "block_type": "double"}
        for i, block in enumerate(self.double_blocks):
            options["block_index"] = i
            img, txt = run_double(block, replace.get(("double_block", i)), img, txt, vec, pe, options, mask)

        x, text_length = torch.cat((txt, img), dim=1), txt.shape[1]
        del img, txt
        options |= {"total_blocks": len(self.single_blocks), "block_type": "single"}
        options["img_slice"] = [text_length, x.shape[1]]
        for i, block in enumerate(self.single_blocks):
            options["block_index"] = i
            x = run_single(block, replace.get(("single_block", i)), x, vec, pe, options, mask)

        x = self.final_layer(x[:, text_length : text_length + image_length], vec)
        return unpack(x, height, width)


class DoubleBlock(nn.Module):
    """Text and image streams that attend jointly; the image stream attends to itself as well."""

    def __init__(self, config: DecoderConfig, layers: Layers) -> None:
        super().__init__()
        hidden = config.hidden_size
        mlp_hidden = int(hidden * config.mlp_ratio)
        self.attention = layers.attention
        self.img_mod = Modulation(hidden, 3, layers)
        self.img_attn = AttentionWeights(config, layers)
        self.img_self_attn = AttentionWeights(config, layers)
        self.img_mlp = GeluMlp(hidden, mlp_hidden, layers)
        self.txt_mod = Modulation(hidden, 2, layers)
        self.txt_attn = AttentionWeights(config, layers)
        self.txt_mlp = GeluMlp(hidden, mlp_hidden, layers)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        options: dict[str, Any],
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """img (B, N, hidden), references included, and txt (B, L, hidden) -> the same; vec (B, hidden)."""
        joint, mlp, own = self.img_mod(vec)
        txt_joint, txt_mlp = self.txt_mod(vec)
        text_length = txt.shape[1]

        q, k, v = self.img_self_attn.project(modulated_norm(img, own.shift, own.factor))
        own_out = self.img_self_attn.proj(self.attention(q, k, v, pe[:, :, text_length:], transformer_options=options))
        del q, k, v

        img_qkv = self.img_attn.project(modulated_norm(img, joint.shift, joint.factor))
        txt_qkv = self.txt_attn.project(modulated_norm(txt, txt_joint.shift, txt_joint.factor))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(txt_qkv, img_qkv, strict=True))
        del img_qkv, txt_qkv
        joint_options = options | {"img_slice": [text_length, q.shape[2]]}
        attn = patched_attention(self.attention, q, k, v, pe, joint_options, mask)
        del q, k, v

        img = torch.addcmul(img, joint.gate, self.img_attn.proj(attn[:, text_length:]))
        img = torch.addcmul(img, own.gate, own_out)
        txt = torch.addcmul(txt, txt_joint.gate, self.txt_attn.proj(attn[:, :text_length]))
        del attn, own_out
        img = torch.addcmul(img, mlp.gate, self.img_mlp(modulated_norm(img, mlp.shift, mlp.factor)))
        txt = torch.addcmul(txt, txt_mlp.gate, self.txt_mlp(modulated_norm(txt, txt_mlp.shift, txt_mlp.factor)))
        return img, txt


class SingleBlock(nn.Module):
    """One stream; attention and MLP in parallel."""

    def __init__(self, config: DecoderConfig, layers: Layers) -> None:
        super().__init__()
        hidden = config.hidden_size
        mlp_hidden = int(hidden * config.mlp_ratio)
        self.split = [3 * hidden, mlp_hidden]
        self.attention = layers.attention
        self.linear1 = layers.linear(hidden, 3 * hidden + mlp_hidden)
        self.linear2 = layers.linear(hidden + mlp_hidden, hidden)
        self.norm = NormedHeads(hidden // config.num_heads, layers)
        self.modulation = Modulation(hidden, 1, layers)

    def forward(
        self, x: Tensor, vec: Tensor, pe: Tensor, options: dict[str, Any], mask: Tensor | None = None
    ) -> Tensor:
        """x (B, L + N, hidden): text, image, references -> the same."""
        (mod,) = self.modulation(vec)
        qkv_mlp = self.linear1(modulated_norm(x, mod.shift, mod.factor))
        qkv, mlp = qkv_mlp.split(self.split, dim=-1)
        q, k, v = self.norm(qkv)
        attn = patched_attention(self.attention, q, k, v, pe, options, mask)
        del qkv, q, k, v
        if keeps_inputs() or may_keep_tensors(options) or has_hooks(self.linear1, *self.norm.modules()):
            joined = torch.cat((attn, F.gelu(mlp, approximate="tanh")), dim=-1).flatten(0, 1)
        else:
            # v is not used after this. Attention's output overwrites it, next to the MLP's output, so that neither is
            # copied.
            torch.ops.aten.gelu_(mlp, approximate="tanh")
            joined = qkv_mlp[..., -(attn.shape[-1] + mlp.shape[-1]) :].flatten(0, 1)
            joined[:, : attn.shape[-1]] = attn.flatten(0, 1)
        return torch.addcmul(x, mod.gate, self.linear2(joined).unflatten(0, x.shape[:2]))


class FinalLayer(nn.Module):
    """Modulated norm and projection to packed latents."""

    def __init__(self, hidden: int, out_channels: int, layers: Layers) -> None:
        super().__init__()
        self.linear = layers.linear(hidden, out_channels)
        # The release applies a SiLU here. It has already been applied to `vec`.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), layers.linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """x (B, N, hidden), vec (B, hidden) -> (B, N, out_channels)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, 1 + scale))


class AttentionWeights(nn.Module):
    """qkv, QK norm and output projection of one attention."""

    def __init__(self, config: DecoderConfig, layers: Layers) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.qkv = layers.linear(hidden, 3 * hidden, bias=config.qkv_bias)
        self.norm = NormedHeads(hidden // config.num_heads, layers)
        self.proj = layers.linear(hidden, hidden)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, L, hidden) -> normed q, k and v, each (B, heads, L, D)."""
        return self.norm(self.qkv(x))


class NormedHeads(nn.Module):
    """Heads of queries, keys and values; RMS norm of queries and keys over the head's width."""

    def __init__(self, dim: int, layers: Layers) -> None:
        super().__init__()
        self.dim = dim
        self.query_norm = layers.rms_norm(dim, eps=NORM_EPS)
        self.key_norm = layers.rms_norm(dim, eps=NORM_EPS)

    def forward(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """qkv (B, L, 3 * hidden) -> normed q, normed k and v, each (B, heads, L, D)."""
        q, k, v = qkv.unflatten(-1, (3, -1, self.dim)).permute(2, 0, 3, 1, 4)
        return self.query_norm(q), self.key_norm(k), v


class Modulated(NamedTuple):
    """Shift, factor (1 + scale) and gate of one branch, each (B, 1, hidden)."""

    shift: Tensor
    factor: Tensor
    gate: Tensor


class Modulation(nn.Module):
    """The time's (shift, scale, gate) for each of a stream's branches."""

    def __init__(self, hidden: int, branches: int, layers: Layers) -> None:
        super().__init__()
        self.branches = branches
        self.lin = layers.linear(hidden, 3 * branches * hidden)

    def forward(self, vec: Tensor) -> list[Modulated]:
        """vec (B, hidden) -> one `Modulated` a branch, in the order of the weights."""
        out = self.lin(vec)[:, None]
        plain, plus_one = (x.chunk(3 * self.branches, dim=-1) for x in (out, 1 + out))
        return [Modulated(plain[i], plus_one[i + 1], plain[i + 2]) for i in range(0, len(plain), 3)]


class Embedder(nn.Module):
    """Two-layer SiLU MLP."""

    def __init__(self, in_dim: int, hidden: int, layers: Layers) -> None:
        super().__init__()
        self.in_layer = layers.linear(in_dim, hidden)
        self.out_layer = layers.linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_dim) -> (B, hidden)."""
        return self.out_layer(F.silu(self.in_layer(x)))


class GeluMlp(nn.Sequential):
    """Linear, GELU (tanh), Linear."""

    def __init__(self, hidden: int, mlp_hidden: int, layers: Layers) -> None:
        super().__init__(
            layers.linear(hidden, mlp_hidden), nn.GELU(approximate="tanh"), layers.linear(mlp_hidden, hidden)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (..., hidden) -> the same."""
        into, activation, out = self
        x = into(x)
        if keeps_inputs() or has_hooks(into, activation):
            return out(activation(x))
        return out(torch.ops.aten.gelu_(x, approximate="tanh"))


def keeps_inputs() -> bool:
    """Whether activations must not be overwritten: for the backward pass, or because a compiler fuses anyway."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def padding_mask(lengths: Tensor, text: int, length: int, dtype: torch.dtype) -> Tensor:
    """Attention mask (B, 1, 1, length), added to the scores: of `text` tokens only the first `lengths` (B,) count."""
    place = torch.arange(length, device=lengths.device)
    padding = (place < text) & (place >= lengths[:, None])
    mask = torch.zeros(padding.shape, dtype=dtype, device=lengths.device)
    return mask.masked_fill_(padding, torch.finfo(dtype).min)[:, None, None]


def modulated_norm(x: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
    """factor * LayerNorm(x) + shift: x (B, L, hidden); shift and factor (B, 1, hidden)."""
    if x.shape[0] == factor.shape[0] == 1 and x.dtype == factor.dtype:
        # As a norm's own weight and bias, which takes one kernel and one rounding.
        return F.layer_norm(x, x.shape[-1:], factor.flatten(), shift.flatten(), NORM_EPS)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), factor)


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoid of 1000 t: t (B,) -> (B, width) float32, cosines first."""
    half = width // 2
    freqs = torch.exp(-math.log(10000.0) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angle = 1000.0 * t.float()[:, None] * freqs
    return torch.cat((angle.cos(), angle.sin()), dim=-1)
