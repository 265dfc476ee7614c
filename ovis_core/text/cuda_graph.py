"""One decode step of the language model as a CUDA graph, so that Python launches one kernel per token, not hundreds."""

from __future__ import annotations

import logging
from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor

from ..networks.kv_cache import KVCache
from ..networks.language import LanguageModel

MAX_FAILURES = 3  # failed captures in a row on a device, after which no more are tried
MIN_TOKENS = 16  # from this many tokens on, capturing takes less time than it saves
_failures: Counter[torch.device] = Counter()


class CapturedDecode:
    """`LanguageModel.decode` over one cache, captured once and replayed.

    The model's weights must stay at their addresses as long as it is used.
    """

    def __init__(self, model: LanguageModel, cache: KVCache) -> None:
        """Captures. Raises RuntimeError if the capture fails."""
        device = cache.keys.device
        self.cache = cache
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        # The first real step overwrites the keys and values that warm-up and capture write at this position.
        self.position = torch.full((1,), cache.length, dtype=torch.int64, device=device)
        # Allocated outside the graph's memory pool, in which no tensor stays alive between two steps.
        self.logits = torch.empty(model.config.vocab_size, device=device)
        self.graph = torch.cuda.CUDAGraph()
        stream, current = _stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.logits.copy_(model.decode_at(self.token, self.position, cache))
        current.wait_stream(stream)
        # Other threads of the server may use CUDA during the capture, which must not invalidate it.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.logits.copy_(model.decode_at(self.token, self.position, cache))

    def __call__(self, token: Tensor) -> Tensor:
        """Token id (1,) -> logits (vocabulary,), which the next call overwrites."""
        self.token.copy_(token)
        self.position.fill_(self.cache.length)
        self.graph.replay()
        self.cache.length += 1
        return self.logits


def capture(model: LanguageModel, cache: KVCache, tokens: int) -> CapturedDecode | None:
    """A captured decode step; None without CUDA, for fewer than `MIN_TOKENS` tokens, and if the capture fails.

    After a failure the next answer tries again, since the cause may have passed, but not after `MAX_FAILURES` in a row.
    Running out of memory does not count.
    """
    device = cache.keys.device
    if device.type != "cuda" or tokens < MIN_TOKENS or _failures[device] >= MAX_FAILURES:
        return None
    current = torch.cuda.current_stream(device)
    try:
        step = CapturedDecode(model, cache)
    except RuntimeError as error:
        # After a failed capture torch is still on the capture's stream.
        torch.cuda.set_stream(current)
        if not isinstance(error, torch.cuda.OutOfMemoryError):
            _failures[device] += 1
        again = _failures[device] < MAX_FAILURES
        then = "the next answer tries again" if again else "restart ComfyUI to try again"
        logging.warning(
            "Ovis-U1: text is generated more slowly, because a CUDA graph could not be captured (%s); %s.", error, then
        )
        return None
    del _failures[device]
    return step


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures: torch keeps a workspace for each stream that ran a matrix product."""
    return torch.cuda.Stream(device)
