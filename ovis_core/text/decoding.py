"""Autoregressive decoding: prefill the prompt, then sample a token and decode it, until an end token.

    cache, logits = prefill(model, tokens, max_new_tokens, device, dtype)
    for token_id in decode(model, cache, logits, sampling, max_new_tokens):
        ...

`Sampling` says how a token is chosen from the logits, `Sampler` chooses it. On CUDA the decode step is replayed from a
graph, see `cuda_graph.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..multimodal import Multimodal, Token, tokens_after
from ..networks.kv_cache import KeysAndValues, KVCache
from .cuda_graph import capture
from .prompts import END_TOKENS


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The steps are taken in this order.

    Both penalties act at temperature 0 too. They count the tokens of the answer, not those of the prompt: the authors'
    code gives `generate` embeddings, and transformers then counts only the tokens that it generated.

    repetition_penalty  over 1: tokens that were generated already become less likely (CTRL, section 4.1)
    presence_penalty    subtracted from the logits of tokens that were generated already
    temperature         divides the logits; 0 is greedy: the likeliest token, and the rest has no effect
    top_k               only the k likeliest tokens; 0 or less: all
    top_p               only the likeliest tokens that together have this probability
    min_p               only tokens at least this many times as likely as the likeliest
    seed                of the random numbers
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int = 0


GREEDY = Sampling(temperature=0.0)
MIN_TEMPERATURE = 1e-4  # below it decoding is greedy, because the likeliest token would be sampled in any case


def prefill(
    model: Multimodal,
    tokens: Sequence[Token],
    max_new_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    past: Sequence[KeysAndValues] = (),
) -> tuple[KVCache, Tensor]:
    """Computes a prompt: its KV cache, with room for `max_new_tokens`, and the first token's logits.

    tokens          token ids and visual inputs
    max_new_tokens  no more than `Multimodal.limit_new_tokens` allows
    device, dtype   of the computation and of the cache
    past            keys and values of the first positions, computed earlier; these are not computed again
    logits          (vocabulary,) float32

    Raises ValueError if `tokens` take more positions than the language model has.
    """
    length = model.check_length(tokens)
    cache = KVCache(model.config.language, length + max_new_tokens, device, dtype)
    for keys, values in past:
        cache.append(keys, values)
    return cache, model.llm.prefill(model.embed(tokens_after(tokens, cache.length), device, dtype), cache)


def decode(
    model: Multimodal,
    cache: KVCache,
    logits: Tensor,
    sampling: Sampling,
    max_new_tokens: int,
    stop_at_end: bool = True,
) -> Iterator[int]:
    """Generates token ids after the positions in `cache`, one at a time, at most `max_new_tokens`.

    cache, logits  from `prefill`; afterwards the cache holds all ids but the last
    stop_at_end    stop after the first end token, which is the last id; False: continue after it
    """
    sampler = Sampler(sampling, max_new_tokens, logits.device)
    with model.pinned(cache.keys) as pinned:
        step: Callable[[Tensor], Tensor] | None = None
        for i in range(max_new_tokens):
            token = sampler.sample(logits)
            token_id = int(token)
            yield token_id
            if (stop_at_end and token_id in END_TOKENS) or i + 1 == max_new_tokens:
                return
            if step is None:  # after the first token, which may be the only one and must not wait for the capture
                captured = capture(model.llm, cache, max_new_tokens) if pinned and model.cuda_graphs else None
                step = captured or (lambda token: model.llm.decode(token, cache))
            logits = step(token)


class Sampler:
    """Samples one token after another, and counts the sampled tokens for the penalties.

    The random numbers come from the CPU's generator, whatever the device: one number per token, looked up in the
    cumulative probabilities.
    """

    def __init__(self, sampling: Sampling, max_new_tokens: int, device: torch.device) -> None:
        self.sampling = sampling
        self.generated = torch.zeros(max_new_tokens, dtype=torch.int64, device=device)
        self.count = 0
        generator = torch.Generator().manual_seed(sampling.seed)
        self.random = torch.rand(max_new_tokens, generator=generator).to(device)

    def sample(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) float32 -> a token id (1,) int64."""
        logits = self.penalize(logits)
        if self.sampling.temperature < MIN_TEMPERATURE:
            token = logits.argmax(keepdim=True)
        else:
            probs, tokens = self.filter(logits)
            cumulative = probs.cumsum(0)
            index = torch.searchsorted(cumulative, self.random[self.count, None] * cumulative[-1], right=True)
            # Rounding must not select an index after the last candidate.
            token = tokens[index.minimum((probs > 0).sum() - 1)]
        self.generated[self.count] = token[0]
        self.count += 1
        return token

    def penalize(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) with both penalties on the tokens generated so far; unchanged if there are none."""
        s = self.sampling
        if s.repetition_penalty == 1.0 and s.presence_penalty == 0.0:
            return logits
        generated = self.generated[: self.count]
        old = logits[generated]
        old = torch.where(old < 0, old * s.repetition_penalty, old / s.repetition_penalty) - s.presence_penalty
        return logits.index_copy(0, generated, old)

    def filter(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Penalized logits (vocabulary,) -> probabilities of the candidates, likeliest first and 0 for those that are
        filtered out, not normalised again; and the candidates' ids.
        """
        s = self.sampling
        top, tokens = logits.topk(min(s.top_k, len(logits)) if s.top_k > 0 else len(logits))
        probs = (top / s.temperature).softmax(0)
        # The likeliest token stays, whatever top_p and min_p are.
        if s.top_p < 1.0:
            probs = torch.where(probs.cumsum(0) - probs < max(s.top_p, 1e-9), probs, 0.0)
        return torch.where(probs >= min(s.min_p, 1.0) * probs[0], probs, 0.0), tokens
