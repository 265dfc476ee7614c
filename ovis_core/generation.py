"""Tokens, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from .cuda_graph import capture
from .multimodal import Multimodal
from .networks.cache import KeyValueCache
from .next_token import NextToken, Sampling
from .prompts import ENDS


def write(
    model: Multimodal, cache: KeyValueCache, logits: Tensor, sampling: Sampling, room: int, ends: bool = True
) -> Iterator[int]:
    """Token ids that follow what `cache` holds, at most `room` of them; an end token is the last.

    logits  for the first of them, from `Multimodal.read`, which left as much room in the cache
    ends    False: goes on after an end token
    """
    choose = NextToken(sampling, room, logits.device)
    with model.holding(cache.keys) as held:
        captured = capture(model.llm, cache, room) if held else None
        step: Callable[[Tensor], Tensor] = captured or (lambda token: model.llm.step(token, cache))
        for i in range(room):
            token = choose(logits)
            number = int(token)
            yield number
            if (ends and number in ENDS) or i + 1 == room:
                return
            logits = step(token)
