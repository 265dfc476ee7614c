"""The bidirectional token refiner: the language model's condition -> the decoder's text tokens (report, 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..weights.config import REFINER_DEPTH
from .layers import Layers


class Refiner(nn.Module):
    """Two pre-norm transformer blocks with a class token, gated by the condition's mean."""

    def __init__(self, context_dim: int, hidden_size: int, heads: int, layers: Layers) -> None:
        super().__init__()
        self.input_embedder = layers.linear(context_dim, hidden_size)
        self.c_embedder = nn.ModuleDict(
            {
                "linear_1": layers.linear(context_dim, hidden_size),
                "linear_2": layers.linear(hidden_size, hidden_size),
            }
        )
        self.cls_token = layers.parameter(1, 1, hidden_size)
        blocks = [RefinerBlock(hidden_size, heads, layers) for _ in range(REFINER_DEPTH)]
        self.individual_token_refiner = nn.ModuleDict({"blocks": nn.ModuleList(blocks)})

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        """condition (B, L, context_dim) -> refined tokens (B, L, hidden), the class token's output (B, hidden)."""
        embed = self.c_embedder
        c = embed["linear_2"](nn.functional.silu(embed["linear_1"](condition.mean(dim=1))))
        x = self.input_embedder(condition)
        cls_token = self.cls_token.to(x.device, x.dtype).expand(x.shape[0], -1, -1)
        x = torch.cat((cls_token, x), dim=1)
        for block in self.individual_token_refiner["blocks"]:
            x = block(x, c)
        return x[:, 1:], x[:, 0]


class RefinerBlock(nn.Module):
    """Self-attention and SiLU MLP, each added through a gate computed from the condition's mean."""

    def __init__(self, hidden_size: int, heads: int, layers: Layers) -> None:
        super().__init__()
        self.heads = heads
        self.attention = layers.attention
        self.norm1 = layers.layer_norm(hidden_size, eps=1e-6)
        self.self_attn_qkv = layers.linear(hidden_size, 3 * hidden_size)
        self.self_attn_proj = layers.linear(hidden_size, hidden_size)
        self.norm2 = layers.layer_norm(hidden_size, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {
                "fc1": layers.linear(hidden_size, 4 * hidden_size),
                "fc2": layers.linear(4 * hidden_size, hidden_size),
            }
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), layers.linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, L, hidden), c (B, hidden) -> (B, L, hidden)."""
        attention_gate, mlp_gate = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = torch.addcmul(x, attention_gate, self.self_attn_proj(self.attention(q, k, v, None)))
        hidden = nn.functional.silu(self.mlp["fc1"](self.norm2(x)))
        return torch.addcmul(x, mlp_gate, self.mlp["fc2"](hidden))
