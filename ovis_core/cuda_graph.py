"""One step of the language model as a CUDA graph, so that Python launches one kernel a token and not hundreds."""

from __future__ import annotations

import logging
from collections import Counter
from functools import lru_cache

import torch
from torch import Tensor

from .networks.cache import KeyValueCache
from .networks.language import LanguageModel

ATTEMPTS = 3  # captures that may fail in a row on a device
_failures: Counter[torch.device] = Counter()
WORTH_IT = 16  # tokens from which on capturing takes less time than it saves


class CapturedStep:
    """`LanguageModel.step` over one cache, recorded once and replayed.

    The model's weights must stay where they are as long as it is used.
    """

    def __init__(self, model: LanguageModel, cache: KeyValueCache) -> None:
        """Captures. Raises RuntimeError where that cannot be done."""
        device = cache.keys.device
        self.cache = cache
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        # What the rehearsal writes into the cache is overwritten by the first real step.
        self.position = torch.full((1,), cache.length, dtype=torch.int64, device=device)
        # Outside of the graph's own memory, of which nothing is alive between two steps.
        self.logits = torch.empty(model.config.vocab_size, device=device)
        self.graph = torch.cuda.CUDAGraph()
        stream, current = _stream(device), torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            self.logits.copy_(model.step_at(self.token, self.position, cache))
        current.wait_stream(stream)
        # What other threads of the server do meanwhile is no part of the capture and must not break it.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.logits.copy_(model.step_at(self.token, self.position, cache))

    def __call__(self, token: Tensor) -> Tensor:
        """Token id (1,) -> logits (vocabulary,), which the next call overwrites."""
        self.token.copy_(token)
        self.position.fill_(self.cache.length)
        self.graph.replay()
        self.cache.length += 1
        return self.logits


def capture(model: LanguageModel, cache: KeyValueCache, tokens: int) -> CapturedStep | None:
    """A captured step if there is CUDA, `tokens` make it worth it, and the capture succeeds; otherwise None.

    The next answer tries again after a failure, whose cause may be gone by then, but not after `ATTEMPTS` in a row.
    Running out of memory does not count.
    """
    device = cache.keys.device
    if device.type != "cuda" or tokens < WORTH_IT or _failures[device] >= ATTEMPTS:
        return None
    current = torch.cuda.current_stream(device)
    try:
        step = CapturedStep(model, cache)
    except RuntimeError as error:
        # A capture that fails leaves torch on its stream.
        torch.cuda.set_stream(current)
        if not isinstance(error, torch.cuda.OutOfMemoryError):
            _failures[device] += 1
        again = _failures[device] < ATTEMPTS
        then = "the next answer tries again" if again else "this stays so until ComfyUI restarts"
        logging.warning(
            "Ovis-U1: the CUDA graph could not be captured, so text is generated more slowly (%s): %s", then, error
        )
        return None
    del _failures[device]
    return step


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures, because torch keeps memory for each stream that ever multiplied."""
    return torch.cuda.Stream(device)
