"""The visual tokenizer: patches -> a probability distribution over 65532 visual words for each 2 x 2 of them.

AIMv2, a ViT with learned and rotary positions, and a softmax head (report, 2.1). Weights have the release's
names.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.config import INDICATORS, VisionConfig
from .layers import Layers
from .rotary import grid_tables, rotate_halves

ROTARY_THETA = 10000.0
HEAD_CHUNK = 1024  # visual tokens per pass of the head: their probabilities take half a gigabyte in bfloat16


class VisualTokenizer(nn.Module):
    """ViT and head."""

    def __init__(self, config: VisionConfig, layers: Layers) -> None:
        super().__init__()
        words = config.vocab_size - INDICATORS
        self.backbone = Backbone(config, layers)
        self.head = nn.Sequential(
            layers.linear(config.hidden_size * config.hidden_stride**2, words, bias=False),
            layers.layer_norm(words, eps=1e-5),
        )

    def forward(self, patches: Tensor, grid: tuple[int, int, int], look_up: Callable[[Tensor], Tensor]) -> Tensor:
        """patches (N, channels * patch * patch), grid (frames, rows, columns) -> embeddings (N / 4, hidden).

        look_up  probabilities (n, words) -> embeddings (n, hidden)

        Frames of a video go through the ViT one by one, and chunks of their features through the head, so that memory
        does not grow with the video.
        """
        frames, rows, columns = grid
        embeddings = [
            look_up(self.words(features))
            for frame in patches.chunk(frames)
            for features in self.backbone(frame, rows, columns).split(HEAD_CHUNK)
        ]
        return torch.cat(embeddings)

    def words(self, features: Tensor) -> Tensor:
        """features (n, stride^2 * hidden) -> probabilities (n, words)."""
        logits = self.head(features)
        return logits.softmax(dim=-1, dtype=torch.float32).to(logits.dtype)


class Backbone(nn.Module):
    """AIMv2: patches -> features."""

    def __init__(self, config: VisionConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(config, layers)
        blocks = [VisionBlock(config, layers) for _ in range(config.num_hidden_layers)]
        # The release has this norm's weight but does not use it. It is kept so that a saved model is complete.
        norm = layers.rms_norm(config.hidden_size, eps=config.rms_norm_eps)
        self.trunk = nn.ModuleDict({"blocks": nn.ModuleList(blocks), "post_trunk_norm": norm})

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """Patches of one frame -> features (N / stride^2, stride^2 * hidden): the last block's output, 2 x 2 joined."""
        stride = self.config.hidden_stride
        x = self.preprocessor(patches, rows, columns)[None]
        head = self.config.hidden_size // self.config.num_attention_heads
        cos, sin = (group_patches(t, stride) for t in grid_tables(rows, columns, head, ROTARY_THETA, x.device))
        for block in self.trunk["blocks"]:
            x = block(x, cos, sin)
        return x.reshape(-1, stride**2 * x.shape[-1])


class Preprocessor(nn.Module):
    """Patch embedding plus learned positions."""

    def __init__(self, config: VisionConfig, layers: Layers) -> None:
        super().__init__()
        patch, hidden = config.patch_size, config.hidden_size
        self.config = config
        self.side = config.image_size // patch
        self.patchifier = nn.ModuleDict(
            {
                "proj": layers.patch_convolution(config.num_channels, hidden, patch),
                "norm": layers.rms_norm(hidden, eps=config.rms_norm_eps),
            }
        )
        self.pos_embed = layers.parameter(1, self.side**2, hidden)

    def forward(self, patches: Tensor, rows: int, columns: int) -> Tensor:
        """patches (rows * columns, channels * patch * patch) -> (rows * columns, hidden)."""
        config = self.config
        x = patches.unflatten(1, (config.num_channels, config.patch_size, config.patch_size))
        x = self.patchifier["norm"](self.patchifier["proj"](x).flatten(1))

        learned = self.pos_embed.to(x.device, x.dtype).unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        learned = F.interpolate(learned, size=(rows, columns), mode="bicubic", align_corners=False)
        return x + group_patches(learned[0].permute(1, 2, 0), config.hidden_stride)


class VisionBlock(nn.Module):
    """Pre-norm attention and SwiGLU."""

    def __init__(self, config: VisionConfig, layers: Layers) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.heads = config.num_attention_heads
        self.attention = layers.attention
        self.attn = nn.ModuleDict(
            {
                "qkv": layers.linear(hidden, 3 * hidden, bias=config.qkv_bias),
                "proj": layers.linear(hidden, hidden, bias=config.use_bias),
            }
        )
        self.norm_1 = layers.rms_norm(hidden, eps=config.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "fc1": layers.linear(hidden, inner, bias=config.use_bias),
                "fc2": layers.linear(inner, hidden, bias=config.use_bias),
                "fc3": layers.linear(hidden, inner, bias=config.use_bias),
            }
        )
        self.norm_2 = layers.rms_norm(hidden, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (1, L, hidden); cos, sin (L, 1, D)."""
        qkv = self.attn["qkv"](self.norm_1(x))
        qk, v = qkv.unflatten(-1, (3 * self.heads, -1)).split((2 * self.heads, self.heads), dim=2)
        q, k = rotate_halves(qk, cos, sin).transpose(1, 2).chunk(2, dim=1)
        x = x + self.attn["proj"](self.attention(q, k, v.transpose(1, 2), None))
        hidden = self.norm_2(x)
        return x + self.mlp["fc2"](F.silu(self.mlp["fc1"](hidden)) * self.mlp["fc3"](hidden))


def group_patches(x: Tensor, stride: int) -> Tensor:
    """(rows, columns, ...) -> (rows * columns, ...) in the patches' order of 2 x 2 groups."""
    return rearrange(x, "(gh sh) (gw sw) ... -> (gh gw sh sw) ...", sh=stride, sw=stride)
