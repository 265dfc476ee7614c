"""The time, read after the device has finished its work."""

from __future__ import annotations

import time
from typing import Any

import torch


def now() -> float:
    """Seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Clock:
    """A streamer for transformers' `generate`, called for the prompt and then for each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Records the time."""
        self.times.append(now())

    def end(self) -> None:
        """The end of the stream."""
