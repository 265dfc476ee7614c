"""Time, peak memory and arithmetic of several variants, run in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from comfy import model_management

from clock import now
from counting import LiveBytes, counting

if TYPE_CHECKING:
    from variants import Variants

COMPILED = "compiled"
RATE_RUNS = 10  # of which the shortest gives the device's rate
BORROWER = "generate"  # it uses our visual tokenizer, so its memory cannot be measured separately


@dataclass
class Workload:
    """A row of the benchmark: work that several variants do.

    variants  name -> function that it runs
    growth    the growth series that the row belongs to -> the row's amount in it
    parts     names of the times, in seconds, that the runs measure and return themselves, in place of the total
    floors    for each part, the least seconds that the device could take, if known
    memory    whether the peak memory is measured on a GPU, where each variant is loaded anew for this
    """

    name: str
    variants: dict[str, Callable[[], Any]]
    growth: dict[str, float] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    floors: tuple[float | None, ...] = ()
    memory: bool = True


@dataclass
class Measured:
    """One variant of a row.

    seconds  of each run
    peak     bytes
    floor    seconds that our arithmetic takes at the device's peak rate
    first    seconds of the run before these, if something was compiled in it
    """

    name: str
    variant: str
    seconds: list[float]
    peak: int | None = None
    floor: float | None = None
    first: float | None = None
    growth: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median time in seconds."""
        return statistics.median(self.seconds)


class Meter:
    """Runs rows. product: operations per second of the device's matrix products."""

    def __init__(self, models: Variants, device: torch.device, repeat: int, product: float) -> None:
        self.models, self.device, self.repeat, self.product = models, device, repeat, product

    def measure(self, row: Workload) -> list[Measured]:
        """Measures every variant, in turns."""
        peaks, flops, first = self._first_turns(row)
        seconds: dict[str, list[tuple[float, ...]]] = {variant: [] for variant in row.variants}
        for _ in range(self.repeat):
            for variant, run in row.variants.items():
                gc.collect()
                start = now()
                answer = run()
                seconds[variant].append(answer if row.parts else (now() - start,))
        if self.device.type == "cuda" and row.memory:
            peaks = {variant: self._peak(variant, run) for variant, run in row.variants.items() if variant != BORROWER}
            self.models.only(None)
        floors = row.floors if row.parts else (flops / self.product if flops else None,)
        names = [f"{row.name}, {part}" for part in row.parts] or [row.name]
        return [
            Measured(
                name,
                variant,
                [times[i] for times in seconds[variant]],
                peaks.get(variant),
                floors[i],
                first if variant == COMPILED else None,
                row.growth,
            )
            for i, name in enumerate(names)
            for variant in row.variants
        ]

    def _first_turns(self, row: Workload) -> tuple[dict[str, int], int, float | None]:
        """Peak bytes of each variant, our arithmetic, and the seconds of a run in which something was compiled.

        On a GPU peaks are read from torch, later, without the other variants on it.
        """
        peaks: dict[str, int] = {}
        flops = 0
        first: float | None = None
        for variant, run in row.variants.items():
            if variant == COMPILED or (row.parts and self.device.type == "cuda"):
                start = now()
                run()
                first = now() - start if variant == COMPILED else first
                continue
            if self.device.type == "cuda":
                with counting() if variant == "ours" else nullcontext() as counts:
                    run()
                flops = counts.flops if counts else flops
                continue
            weights = self.models.weights(variant)
            with LiveBytes(weights) as live, counting() as counts:
                run()
            if variant != BORROWER:
                peaks[variant] = live.peak + sum(weight.nbytes for weight in weights)
            if variant == "ours":
                flops = counts.flops
        return peaks, flops, first

    def _peak(self, variant: str, run: Callable[[], Any]) -> int:
        """Peak bytes on the GPU with only this variant on it, including its weights."""
        self.models.only(variant)
        gc.collect()
        model_management.soft_empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device)


def device_rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations per second of a large matrix product, and bytes per second that a copy reads and writes."""
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    data = torch.zeros((1 << 30) if device.type == "cuda" else (1 << 27), dtype=torch.uint8, device=device)
    copied = torch.empty_like(data)
    return 2 * side**3 / _shortest(lambda: a @ a), 2 * data.nbytes / _shortest(lambda: copied.copy_(data))


def _shortest(run: Callable[[], Any]) -> float:
    run()
    seconds = []
    for _ in range(RATE_RUNS):
        start = now()
        run()
        seconds.append(now() - start)
    return min(seconds)
