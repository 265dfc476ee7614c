"""Logits -> the next token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The steps are taken in this order.

    Both penalties act at temperature 0 too. They count the tokens of the answer, not those of the prompt: the authors'
    code gives `generate` embeddings, and transformers then counts only what it has written itself.

    repetition_penalty  over 1: tokens that were written already become less likely (CTRL, section 4.1)
    presence_penalty    taken off the logits of tokens that were written already
    temperature         divides the logits; 0 always takes the likeliest token, and the rest has no effect
    top_k               only the k likeliest tokens; 0 or less: all
    top_p               only the likeliest tokens that together have this probability
    min_p               only tokens at least this many times as likely as the likeliest
    seed                of the draws
    """

    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    seed: int = 0


GREEDY = Sampling(temperature=0.0)
COLD = 1e-4  # temperatures under it are greedy: dividing by them says no more


class NextToken:
    """Chooses one token after the other; remembers those that were chosen.

    The random numbers come from the CPU's generator, whatever the device: one number per token, looked up in the
    cumulated probabilities.
    """

    def __init__(self, sampling: Sampling, limit: int, device: torch.device) -> None:
        """limit: maximum number of tokens."""
        self.sampling = sampling
        self.written = torch.zeros(limit, dtype=torch.int64, device=device)
        self.count = 0
        generator = torch.Generator().manual_seed(sampling.seed)
        self.draws = torch.rand(limit, generator=generator).to(device)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) float32 -> a token id (1,)."""
        if self.sampling.temperature < COLD:
            token = self.penalized(logits).argmax(keepdim=True)
        else:
            likely, tokens = self.candidates(logits)
            summed = likely.cumsum(0)
            chosen = torch.searchsorted(summed, self.draws[self.count, None] * summed[-1], right=True)
            # Rounding must not lead past the last one that may be drawn.
            token = tokens[chosen.minimum((likely > 0).sum() - 1)]
        self.written[self.count] = token[0]
        self.count += 1
        return token

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of the tokens that may be drawn, likeliest first and not summing to 1, and their ids."""
        s, logits = self.sampling, self.penalized(logits)
        top, tokens = logits.topk(min(s.top_k, len(logits)) if s.top_k > 0 else len(logits))
        likely = (top / s.temperature).softmax(0)
        # The likeliest stays, whatever top_p and min_p say.
        if s.top_p < 1.0:
            likely = torch.where(likely.cumsum(0) - likely < max(s.top_p, 1e-9), likely, 0.0)
        return torch.where(likely >= min(s.min_p, 1.0) * likely[0], likely, 0.0), tokens

    def penalized(self, logits: Tensor) -> Tensor:
        """Logits (vocabulary,) with both penalties on the tokens that were written; the same tensor without any."""
        s = self.sampling
        if s.repetition_penalty == 1.0 and s.presence_penalty == 0.0:
            return logits
        written = self.written[: self.count]
        old = logits[written]
        old = torch.where(old < 0, old * s.repetition_penalty, old / s.repetition_penalty) - s.presence_penalty
        return logits.index_copy(0, written, old)
