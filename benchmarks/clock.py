"""Time, when the device has done all that was asked of it."""

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
    """A streamer for transformers' `generate`, which it tells of the prompt and then of each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """Notes the time."""
        self.times.append(now())

    def end(self) -> None:
        """Nothing more is to come."""
