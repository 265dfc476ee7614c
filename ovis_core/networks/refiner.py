"""The bidirectional token refiner: the language model's condition -> what the decoder attends to (report, 2.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention

DEPTH = 2  # fixed by the release; config.json does not say it


class Refiner(nn.Module):
    """Two pre-norm transformer blocks with a class token, gated by the condition's mean."""

    def __init__(
        self,
        context_dim: int,
        hidden_size: int,
        heads: int,
        *,
        operations: Any,
        attention: Attention,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        kwargs = {"dtype": dtype, "device": device}
        self.input_embedder = operations.Linear(context_dim, hidden_size, **kwargs)
        self.c_embedder = nn.ModuleDict(
            {
                "linear_1": operations.Linear(context_dim, hidden_size, **kwargs),
                "linear_2": operations.Linear(hidden_size, hidden_size, **kwargs),
            }
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, hidden_size, **kwargs), requires_grad=False)
        blocks = [
            RefinerBlock(hidden_size, heads, operations=operations, attention=attention, **kwargs) for _ in range(DEPTH)
        ]
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

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        *,
        operations: Any,
        attention: Attention,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        kwargs = {"dtype": dtype, "device": device}
        self.heads = heads
        self.attention = attention
        self.norm1 = operations.LayerNorm(hidden_size, eps=1e-6, **kwargs)
        self.self_attn_qkv = operations.Linear(hidden_size, 3 * hidden_size, **kwargs)
        self.self_attn_proj = operations.Linear(hidden_size, hidden_size, **kwargs)
        self.norm2 = operations.LayerNorm(hidden_size, eps=1e-6, **kwargs)
        self.mlp = nn.ModuleDict(
            {
                "fc1": operations.Linear(hidden_size, 4 * hidden_size, **kwargs),
                "fc2": operations.Linear(4 * hidden_size, hidden_size, **kwargs),
            }
        )
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(hidden_size, 2 * hidden_size, **kwargs))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, L, hidden), c (B, hidden) -> (B, L, hidden)."""
        attention_gate, mlp_gate = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        qkv = self.self_attn_qkv(self.norm1(x))
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = torch.addcmul(x, attention_gate, self.self_attn_proj(self.attention(q, k, v, None)))
        hidden = nn.functional.silu(self.mlp["fc1"](self.norm2(x)))
        return torch.addcmul(x, mlp_gate, self.mlp["fc2"](hidden))
