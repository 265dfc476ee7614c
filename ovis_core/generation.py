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
        step: Callable[[Tensor], Tensor] | None = None
        for i in range(room):
            token = choose(logits)
            number = int(token)
            yield number
            if (ends and number in ENDS) or i + 1 == room:
                return
            if step is None:  # the first token does not wait for the capture, and may be the only one
                captured = capture(model.llm, cache, room) if held else None
                step = captured or (lambda token: model.llm.step(token, cache))
            logits = step(token)
