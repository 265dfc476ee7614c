"""Text and visual inputs -> one sequence of embeddings -> the decoder's condition.

Joins the language model and the visual tokenizer; `vte` is the visual embedding table between them. The same embeddings
are the prompt of `text/decoding.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .networks.kv_cache import KVCache
from .networks.language import PREFILL_CHUNK, LanguageModel
from .networks.layers import Layers
from .networks.vision import HEAD_CHUNK, VisualTokenizer
from .pixels import VisualInput
from .special_tokens import Placeholder
from .weights.config import INDICATORS, OvisConfig

# Rows of the visual embedding table, counted from its end: the embeddings before and after a visual input's.
BRACKETS = {Placeholder.IMAGE: (-5, -4), Placeholder.VIDEO: (-3, -3)}

Token = int | VisualInput


class Multimodal(nn.Module):
    """Language model, visual tokenizer and visual embedding table. Weights have the release's names.

    cuda_graphs  whether they may be used while text is generated
    """

    cuda_graphs = True

    def __init__(self, config: OvisConfig, layers: Layers | None = None) -> None:
        super().__init__()
        layers = layers or Layers()
        self.config = config
        self.cast_weight = layers.cast_weight
        self.llm = LanguageModel(config.language, layers)
        self.visual_tokenizer = VisualTokenizer(config.vision, layers)
        self.vte = layers.embedding(config.vision.vocab_size, config.language.hidden_size)

    def memory_needed(self, length: int, visual_tokens: int, dtype: torch.dtype, capacity: int = 0) -> int:
        """Bytes of the tensors that are alive at once in `condition` or a prefill, without the weights, with a margin.

        length         positions of the sequence
        visual_tokens  those of one frame of its largest visual input
        capacity       of the prefill's KV cache; 0 for `condition`, which has none
        """
        language, vision, size = self.config.language, self.config.vision, dtype.itemsize
        # Logits, the same in float32, and their softmax.
        words = min(visual_tokens, HEAD_CHUNK) * vision.vocab_size * (size + 8)
        patches = visual_tokens * vision.hidden_stride**2 * size
        features = patches * (8 * vision.hidden_size + 3 * vision.intermediate_size)
        heads = language.num_attention_heads * language.head_dim
        keys = language.num_key_value_heads * language.head_dim
        # Attention: states, their projections, and the rotation in float32. Feed-forward: three of its inner states.
        attention = size * (4 * language.hidden_size + 3 * (heads + keys)) + 2 * 4 * (heads + keys)
        inner = size * (4 * language.hidden_size + 3 * language.intermediate_size)
        at_once = min(length, PREFILL_CHUNK) if capacity else length
        mask = at_once * length * (1 + size) if at_once < length else 0
        states = at_once * max(attention, inner) + length * language.hidden_size * size + mask
        cache = KVCache.bytes_needed(language, capacity, dtype)
        return int(1.2 * max(words, features, states) + cache)

    def encode_image(self, visual_input: VisualInput, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Embeddings (tokens, hidden) of an image or video: begin, one for each 2 x 2 patches, end."""
        visual = self.visual_tokenizer(visual_input.patches.to(device, dtype), visual_input.grid, self._look_up)
        begin, end = self.vte(torch.tensor(BRACKETS[visual_input.kind], device=device) % self.config.vision.vocab_size)
        return torch.cat((begin[None].to(dtype), visual, end[None].to(dtype)))

    def _look_up(self, words: Tensor) -> Tensor:
        with self.cast_weight(self.vte, words) as table:
            return words @ table[:-INDICATORS]

    def embed(self, tokens: Sequence[Token], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Token ids and visual inputs in reading order -> (L, hidden) on `device`."""
        ids = torch.tensor([0 if isinstance(t, VisualInput) else t for t in tokens], device=device)
        text = self.llm.embed(ids, dtype)
        parts, start = [], 0
        for i, token in enumerate(tokens):
            if isinstance(token, VisualInput):
                parts += [text[start:i], self.encode_image(token, device, dtype)]
                start = i + 1
        return torch.cat((*parts, text[start:]))

    def condition(self, tokens: Sequence[Token], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Token ids and visual inputs -> the decoder's condition (1, L, 2 * hidden), before the refiner.

        Raises ValueError if they take more positions than the language model has.
        """
        self.check_length(tokens)
        return self.llm.condition(self.embed(tokens, device, dtype)[None])

    def check_length(self, tokens: Sequence[Token]) -> int:
        """Positions that `tokens` take; raises ValueError if the language model has fewer."""
        visual = sum(token.tokens for token in tokens if isinstance(token, VisualInput))
        length = sequence_length(tokens)
        check_positions(length - visual, visual, self.config.language.max_position_embeddings)
        return length

    def limit_new_tokens(self, tokens: Sequence[Token], max_new_tokens: int) -> int:
        """How many of `max_new_tokens` fit after `tokens`; raises ValueError if `tokens` alone are too long."""
        left = self.config.language.max_position_embeddings - self.check_length(tokens) + 1
        return min(max_new_tokens, left)

    @contextmanager
    def pinned(self, like: Tensor) -> Iterator[bool]:
        """Whether all weights of the language model are on `like`'s device and stay there until the context ends."""
        yield all(weight.device == like.device for weight in self.llm.parameters())


def check_positions(text: int, visual: int, limit: int, name: str = "prompt") -> None:
    """Raises ValueError if `text` and `visual` tokens are more than `limit`, the language model's maximum length.

    name  the input that has most of the text
    """
    if text + visual > limit:
        name = "prompt" if visual > text else name
        remedy = "use fewer or smaller images or frames" if visual > text else "shorten the text"
        raise ValueError(
            f"{name}: expected at most {limit} tokens, got {text + visual} ({visual} of them for images); {remedy}."
        )


def sequence_length(tokens: Sequence[Token]) -> int:
    """Positions in the language model."""
    return sum(token.tokens if isinstance(token, VisualInput) else 1 for token in tokens)


def tokens_after(tokens: Sequence[Token], positions: int) -> Sequence[Token]:
    """The tokens that follow the first `positions`."""
    for i, token in enumerate(tokens):
        if positions <= 0:
            return tokens[i:]
        positions -= sequence_length([token])
    return tokens[:0]
