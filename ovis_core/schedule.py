"""The model's noise schedule: evenly spaced times, shifted by the number of image tokens.

Times are the flow's t (ComfyUI's sigma): 1 is noise, 0 is the image.
"""

from __future__ import annotations

import math

SCHEDULER = "ovis_u1"  # the name of this schedule among ComfyUI's schedulers
BASE_TOKENS = 256
MAX_TOKENS = 4096


def shift_for(tokens: int, base_shift: float = 0.5, max_shift: float = 1.15) -> float:
    """mu for an image of `tokens` tokens: linear through (256, base_shift) and (4096, max_shift), extrapolated."""
    slope = (max_shift - base_shift) / (MAX_TOKENS - BASE_TOKENS)
    return slope * tokens + (base_shift - slope * BASE_TOKENS)


def shift_time(shift: float, t: float) -> float:
    """exp(mu) / (exp(mu) + 1/t - 1), with its limit 0 at t = 0."""
    if t <= 0.0:
        return 0.0
    return math.exp(shift) / (math.exp(shift) + 1.0 / t - 1.0)


def shifted_times(steps: int, shift: float, denoise: float = 1.0) -> list[float]:
    """`steps` + 1 times from 1 to 0; with `denoise` below 1 the last `steps` + 1 of a longer schedule.

    `denoise` counts as in ComfyUI's schedulers: the whole schedule has int(steps / denoise) steps. `denoise` 0 returns
    an empty schedule.
    """
    if denoise <= 0.0:
        return []
    total = steps if denoise >= 1.0 else int(steps / denoise)
    return [shift_time(shift, 1.0 - i / total) for i in range(total + 1)][-(steps + 1) :]
