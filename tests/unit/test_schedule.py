"""The model's own schedule."""

from __future__ import annotations

from typing import Any

import pytest

from ovis_core.schedule import shift_for, shifted_times


def test_times_match_the_release(golden: dict[str, Any]) -> None:
    for name, times in golden["schedule"].items():
        width, height, steps = map(int, name.split("x"))
        assert shifted_times(steps, shift_for(height // 16 * (width // 16))) == pytest.approx(times, abs=1e-6)


def test_denoise_uses_the_end_of_a_longer_schedule() -> None:
    whole = shifted_times(20, 1.0)
    assert shifted_times(10, 1.0, denoise=0.5) == whole[-11:]
    assert shifted_times(10, 1.0, denoise=0.0) == []
