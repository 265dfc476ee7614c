"""Qwen3 from transformers, with layers of our making. Weights carry the release's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from ..config import LanguageConfig
from .layers import Layers


class LanguageModel(nn.Module):
    """Qwen3 without an output head: text and image embeddings -> hidden states."""

    def __init__(self, config: LanguageConfig, layers: Layers) -> None:
        super().__init__()
        qwen3 = Qwen3Config(**vars(config), use_cache=False, attn_implementation="sdpa")
        with torch.device("meta"):
            self.model = Qwen3Model(qwen3)
        replace_layers(self.model, layers)
        # Rotary frequencies are computed, not loaded, and they were computed on the meta device. transformers moves
        # them to where the hidden states are.
        self.model.rotary_emb = Qwen3RotaryEmbedding(qwen3)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Token ids (L,) -> embeddings (L, hidden)."""
        return self.model.embed_tokens(ids).to(dtype)

    def condition(self, embeds: Tensor) -> Tensor:
        """Embeddings (B, L, hidden) -> (B, L, 2 * hidden): the final hidden state, normed, then the one that enters
        the last layer, not normed.

        One causal pass; no output logits are computed.
        """
        states = self.model(inputs_embeds=embeds, use_cache=False, output_hidden_states=True).hidden_states
        return torch.cat((states[-1], states[-2]), dim=-1)


def replace_layers(module: nn.Module, layers: Layers) -> None:
    """Replaces everything that holds weights by one of `layers`, not initialized."""
    make = {
        "Linear": lambda x: layers.linear(x.in_features, x.out_features, bias=x.bias is not None),
        "Embedding": lambda x: layers.embedding(x.num_embeddings, x.embedding_dim),
        "Qwen3RMSNorm": lambda x: layers.rms_norm(x.weight.shape[0], x.variance_epsilon),
    }
    for name, child in module.named_children():
        kind = type(child).__name__
        if kind in make:
            setattr(module, name, make[kind](child))
        else:
            replace_layers(child, layers)
