"""Time, peak memory and arithmetic of what several sides do, in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from comfy import model_management

from clock import now
from counting import LiveBytes, counting

COMPILED = "compiled"
BORROWER = "generate"  # its pictures go through our model, so its own memory is not to be told apart


@dataclass
class Row:
    """Work that several sides do.

    sides   what each one runs
    growth  the series about growth that the row is a part of, and the amount there
    parts   names of times that the runs measure themselves and answer, in seconds, in place of the whole
    floors  the least seconds of each part that the device could take, where that is known
    """

    name: str
    sides: dict[str, Callable[[], Any]]
    growth: dict[str, float] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    floors: tuple[float | None, ...] = ()


@dataclass
class Measured:
    """One side of a row.

    seconds  of each turn
    peak     bytes
    floor    seconds that the arithmetic of ours would take
    first    seconds of the turn before these, where something was compiled in it
    """

    name: str
    side: str
    seconds: list[float]
    peak: int | None = None
    floor: float | None = None
    first: float | None = None
    growth: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


class Places(Protocol):
    """What a `Meter` asks of the models."""

    def only(self, side: str | None) -> None:
        """Leaves the device to one side; None: back to all of them."""

    def weights(self, side: str) -> list[torch.Tensor]:
        """Of a side, wherever they are."""


class Meter:
    """Runs rows. product: operations a second of the device's matrix products."""

    def __init__(self, places: Places, device: torch.device, repeat: int, product: float) -> None:
        self.places, self.device, self.repeat, self.product = places, device, repeat, product

    def measure(self, row: Row) -> list[Measured]:
        """Every side's times, which take turns."""
        peaks, flops, first = self._first_turns(row)
        seconds: dict[str, list[tuple[float, ...]]] = {side: [] for side in row.sides}
        for _ in range(self.repeat):
            for side, run in row.sides.items():
                gc.collect()
                start = now()
                answer = run()
                seconds[side].append(answer if row.parts else (now() - start,))
        if self.device.type == "cuda":
            peaks = {side: self._peak(side, run) for side, run in row.sides.items() if side != BORROWER}
            self.places.only(None)
        floors = row.floors if row.parts else (flops / self.product if flops else None,)
        names = [f"{row.name}, {part}" for part in row.parts] or [row.name]
        return [
            Measured(
                name,
                side,
                [times[i] for times in seconds[side]],
                peaks.get(side),
                floors[i],
                first if side == COMPILED else None,
                row.growth,
            )
            for i, name in enumerate(names)
            for side in row.sides
        ]

    def _first_turns(self, row: Row) -> tuple[dict[str, int], int, float | None]:
        """Peak bytes of each side, the arithmetic of ours, and the seconds in which something was compiled.

        On a GPU peaks are asked of torch, later and with the other sides out of the way.
        """
        peaks, flops, first = {}, 0, None
        for side, run in row.sides.items():
            if side == COMPILED or (row.parts and self.device.type == "cuda"):
                start = now()
                run()
                first = now() - start if side == COMPILED else first
                continue
            weights = self.places.weights(side)
            with LiveBytes(weights) as live, counting() as counts:
                run()
            if self.device.type != "cuda" and side != BORROWER:
                peaks[side] = live.peak + sum(weight.nbytes for weight in weights)
            if side == "ours":
                flops = counts.flops
        return peaks, flops, first

    def _peak(self, side: str, run: Callable[[], Any]) -> int:
        """Most bytes on the GPU while only this side is there, its weights included."""
        self.places.only(side)
        gc.collect()
        model_management.soft_empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device)


def device_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations a second of a large matrix product, bytes a second that a copy reads and writes."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    data = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 27), dtype=torch.uint8, device=device)
    copied = torch.empty_like(data)
    return 2 * side**3 / _shortest(lambda: a @ a), 2 * data.nbytes / _shortest(lambda: copied.copy_(data))


def _shortest(run: Callable[[], Any], times: int = 10) -> float:
    run()
    seconds = []
    for _ in range(times):
        start = now()
        run()
        seconds.append(now() - start)
    return min(seconds)
