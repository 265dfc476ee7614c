"""Definitions that several schemas use."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "Ovis-U1"
IMAGES = "images"  # group of the inputs that grow: image_2, image_3, ...
History = io.Custom("OVIS_U1_HISTORY")
LoopState = io.Custom("OVIS_U1_LOOP")


def image_names(last: int) -> list[str]:
    """Names of the growing inputs up to this number; the first image has an input that does not grow."""
    return [f"image_{number}" for number in range(2, last + 1)]
