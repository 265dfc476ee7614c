"""The language model, Qwen3, with its input embeddings as output head. Weights have the release's names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..weights.config import LanguageConfig
from .attention import causal_attention, without_cudnn
from .kv_cache import KVCache
from .layers import Layers
from .rotary import line_tables, rotate_halves

PREFILL_CHUNK = 4096  # positions per forward pass of a prefill: a long text takes no more memory for activations

# (q, k, v), each (B, heads, n, head) -> (B, n, heads * head)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class LanguageModel(nn.Module):
    """Text and image embeddings -> hidden states, or the next token's logits."""

    def __init__(self, config: LanguageConfig, layers: Layers) -> None:
        super().__init__()
        self.config = config
        self.cast_weight = layers.cast_weight
        blocks = [LanguageBlock(config, layers) for _ in range(config.num_hidden_layers)]
        self.model = nn.ModuleDict(
            {
                "embed_tokens": layers.embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(blocks),
                "norm": layers.rms_norm(config.hidden_size, eps=config.rms_norm_eps),
            }
        )

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's layers."""
        return self.model["layers"]

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Token ids (L,) -> embeddings (L, hidden)."""
        return self.model["embed_tokens"](ids).to(dtype)

    @without_cudnn()
    def condition(self, embeds: Tensor) -> Tensor:
        """Embeddings (B, L, hidden) -> (B, L, 2 * hidden): the final hidden state, normed, then the one that enters
        the last layer, not normed.

        One causal pass; no output logits are computed.
        """
        cos, sin = line_tables(embeds.shape[1], self.config.head_dim, self.config.rope_theta, embeds.device)
        x = embeds
        for block in self.blocks[:-1]:
            x = block(x, cos, sin, causal_attention)
        return torch.cat((self.model["norm"](self.blocks[-1](x, cos, sin, causal_attention)), x), dim=-1)

    @without_cudnn()
    def prefill(self, embeds: Tensor, cache: KVCache) -> Tensor:
        """Embeddings (L, hidden) at the positions after `cache` -> the next token's logits (vocabulary,), float32."""
        for chunk in embeds[None].split(PREFILL_CHUNK, dim=1):
            end = cache.length + chunk.shape[1]
            x = chunk
            for i, block in enumerate(self.blocks):
                x = block(x, cache.cos[cache.length : end], cache.sin[cache.length : end], partial(cache.attend, i))
            cache.length = end
        return self._logits(x)

    def decode(self, token: Tensor, cache: KVCache) -> Tensor:
        """One token id (1,) at the position after `cache` -> the next token's logits, as `prefill`."""
        return self.prefill(self.embed(token, cache.keys.dtype), cache)

    def decode_at(self, token: Tensor, position: Tensor, cache: KVCache) -> Tensor:
        """`decode` at a position (1,) int64 on the device; does not change `cache.length`.

        It attends over the cache's whole capacity and launches the same kernels for every position, so that a CUDA
        graph can replay it.
        """
        x = self.embed(token, cache.keys.dtype)[None]
        cos, sin = cache.cos.index_select(0, position), cache.sin.index_select(0, position)
        future = torch.arange(cache.capacity, device=position.device) > position
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, partial(cache.attend_at, position, future, i))
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.model["norm"](x[0, -1])
        with self.cast_weight(self.model["embed_tokens"], x) as table:
            return F.linear(x, table).float()


class LanguageBlock(nn.Module):
    """Pre-norm attention with normed queries and keys, and SwiGLU."""

    def __init__(self, config: LanguageConfig, layers: Layers) -> None:
        super().__init__()
        hidden, inner, head, eps = config.hidden_size, config.intermediate_size, config.head_dim, config.rms_norm_eps
        self.heads, self.head = (config.num_attention_heads, config.num_key_value_heads), head
        queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
        self.input_layernorm = layers.rms_norm(hidden, eps=eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": layers.linear(hidden, queries, bias=False),
                "k_proj": layers.linear(hidden, keys, bias=False),
                "v_proj": layers.linear(hidden, keys, bias=False),
                "o_proj": layers.linear(queries, hidden, bias=False),
                "q_norm": layers.rms_norm(head, eps=eps),
                "k_norm": layers.rms_norm(head, eps=eps),
            }
        )
        self.post_attention_layernorm = layers.rms_norm(hidden, eps=eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": layers.linear(hidden, inner, bias=False),
                "up_proj": layers.linear(hidden, inner, bias=False),
                "down_proj": layers.linear(inner, hidden, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """x (B, L, hidden); cos, sin (L, 1, head)."""
        part, hidden = self.self_attn, self.input_layernorm(x)
        q, k, v = (part[name](hidden).unflatten(-1, (-1, self.head)) for name in ("q_proj", "k_proj", "v_proj"))
        rotated = rotate_halves(torch.cat((part["q_norm"](q), part["k_norm"](k)), dim=2), cos, sin)
        q, k = rotated.transpose(1, 2).split(self.heads, dim=1)
        x = x + part["o_proj"](attend(q, k, v.transpose(1, 2)))
        hidden = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](hidden)) * self.mlp["up_proj"](hidden))
