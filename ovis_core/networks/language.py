"""Qwen3 from transformers, with its layers made by an `operations` namespace. Weights carry the release's names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from ..config import LanguageConfig


class LanguageModel(nn.Module):
    """Qwen3 without an output head: text and image embeddings -> hidden states."""

    def __init__(
        self,
        config: LanguageConfig,
        *,
        operations: Any = torch.nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        qwen3 = Qwen3Config(**vars(config), use_cache=False, attn_implementation="sdpa")
        with torch.device("meta"):
            self.model = Qwen3Model(qwen3)
        use_operations(self.model, operations, dtype, device)
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


def use_operations(
    module: nn.Module, operations: Any, dtype: torch.dtype | None, device: torch.device | str | None
) -> None:
    """Replaces every layer that holds weights by one of `operations`, on `device` and not initialized."""
    kwargs = {"dtype": dtype, "device": device}
    make = {
        "Linear": lambda x: operations.Linear(x.in_features, x.out_features, bias=x.bias is not None, **kwargs),
        "Embedding": lambda x: operations.Embedding(x.num_embeddings, x.embedding_dim, **kwargs),
        "Qwen3RMSNorm": lambda x: operations.RMSNorm(x.weight.shape[0], eps=x.variance_epsilon, **kwargs),
    }
    for name, child in module.named_children():
        kind = type(child).__name__
        if kind in make:
            setattr(module, name, make[kind](child))
        else:
            use_operations(child, operations, dtype, device)
