"""One step of the language model as a CUDA graph, so that Python launches one kernel a token and not hundreds."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .networks.cache import KeyValueCache
from .networks.language import LanguageModel

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
        # What the rehearsals write into the cache is overwritten by the first real step.
        self.position = torch.full((1,), cache.length, dtype=torch.int64, device=device)
        self.graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                model.step_at(self.token, self.position, cache)
        torch.cuda.current_stream(device).wait_stream(stream)
        # What other threads of the server do meanwhile is no part of the capture and must not break it.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.logits = model.step_at(self.token, self.position, cache)

    def __call__(self, token: Tensor) -> Tensor:
        """Token id (1,) -> logits (vocabulary,), which the next call overwrites."""
        self.token.copy_(token)
        self.position.fill_(self.cache.length)
        self.graph.replay()
        self.cache.length += 1
        return self.logits


def capture(model: LanguageModel, cache: KeyValueCache, tokens: int) -> CapturedStep | None:
    """A captured step where there is CUDA, `tokens` make it worth it, and the capture succeeds; otherwise None."""
    if cache.keys.device.type != "cuda" or tokens < WORTH_IT:
        return None
    try:
        return CapturedStep(model, cache)
    except RuntimeError as error:
        logging.warning("Ovis-U1: writes without a CUDA graph, which is slower: %s", error)
        return None
