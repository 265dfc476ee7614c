"""Resizing rules."""

from __future__ import annotations

from typing import Any

import pytest

from ovis_core import sizes


def test_sizes_match_the_release(golden: dict[str, Any]) -> None:
    for row in golden["smart_resize"]:
        target = sizes.edit_target_size(row["height"], row["width"])
        first = sizes.condition_size(*target)
        pixels = sizes.understanding_size(*first)
        assert list(target) == row["edit_target_hw"]
        assert list(sizes.understanding_size(row["height"], row["width"])) == row["understand_hw"]
        assert list(first) == row["condition_image_hw"]
        assert list(pixels) == row["condition_pixels_hw"]
        assert pixels[0] * pixels[1] // sizes.FACTOR**2 == row["condition_visual_tokens"]


@pytest.mark.parametrize(("height", "width"), [(3, 4000), (4000, 3), (1, 1), (28, 5601), (27, 27)])
def test_sides_are_at_least_the_factor(height: int, width: int) -> None:
    for resize in (sizes.understanding_size, sizes.condition_size):
        assert min(resize(height, width)) >= sizes.FACTOR
        assert all(side % sizes.FACTOR == 0 for side in resize(height, width))
    assert min(sizes.edit_target_size(height, width)) >= sizes.EDIT_FACTOR


def test_aspect_ratio_over_200_is_reduced() -> None:
    assert sizes.smart_resize(28, 28 * 300, bounds=(1, 10**9)) == (28, 28 * 200)
    assert sizes.smart_resize(28 * 300, 28, bounds=(1, 10**9)) == (28 * 200, 28)


def test_small_sides_are_scaled_before_the_aspect_ratio_is_checked() -> None:
    assert sizes.smart_resize(14, 14 * 300, bounds=(1, 10**9)) == (28, 28 * 300)
