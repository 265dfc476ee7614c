"""Sizes that images are resized to for each part of the model.

All sizes are (height, width) in pixels.
"""

from __future__ import annotations

import math

from .weights.config import HIDDEN_STRIDE, LATENT_PATCH, LATENT_SCALE, PATCH_SIZE

FACTOR = PATCH_SIZE * HIDDEN_STRIDE  # pixels per side of one visual token
EDIT_FACTOR = 32
LATENT_FACTOR = LATENT_SCALE * LATENT_PATCH  # pixels per side of one decoder token
MAX_ASPECT = 200

DEFAULT_BOUNDS = (56 * 56, 14 * 14 * 4 * 1280)
CONDITION_BOUNDS = (56 * 56, 448 * 448)
UNDERSTANDING_BOUNDS = (448 * 448, 2408448)


def smart_resize(
    height: int,
    width: int,
    factor: int = FACTOR,
    bounds: tuple[int, int] = DEFAULT_BOUNDS,
) -> tuple[int, int]:
    """Nearest size whose sides are multiples of `factor` and whose area lies within `bounds` (in pixels).

    Qwen2-VL's rule with the release's corner cases: a side under `factor` scales the image up first, and otherwise an
    aspect ratio over 200 is reduced. The rule can return a side of zero for a very thin image; here every side is at
    least `factor`.
    """
    low, high = bounds
    if min(height, width) < factor:
        scale = factor / min(height, width)
        if height < width:
            height, width = factor, round(scale * width)
        else:
            height, width = round(scale * height), factor
    elif max(height, width) > MAX_ASPECT * min(height, width):
        if height > width:
            height = MAX_ASPECT * width
        else:
            width = MAX_ASPECT * height

    out_height = round(height / factor) * factor
    out_width = round(width / factor) * factor
    if out_height * out_width > high:
        beta = math.sqrt(height * width / high)
        out_height = math.floor(height / beta / factor) * factor
        out_width = math.floor(width / beta / factor) * factor
    elif out_height * out_width < low:
        beta = math.sqrt(low / (height * width))
        out_height = math.ceil(height * beta / factor) * factor
        out_width = math.ceil(width * beta / factor) * factor
    return max(out_height, factor), max(out_width, factor)


def understanding_size(height: int, width: int) -> tuple[int, int]:
    """Size for the visual tokenizer: 200704 to 2408448 pixels."""
    return smart_resize(height, width, FACTOR, UNDERSTANDING_BOUNDS)


def condition_size(height: int, width: int) -> tuple[int, int]:
    """First of the two resizes of a condition's image: 3136 to 200704 pixels.

    `understanding_size` of it follows, and can enlarge it again.
    """
    return smart_resize(height, width, FACTOR, CONDITION_BOUNDS)


def edit_target_size(height: int, width: int, max_pixels: int = DEFAULT_BOUNDS[1]) -> tuple[int, int]:
    """The size at which an image of this size is edited; the release's limit is 1003520 pixels."""
    return smart_resize(height, width, EDIT_FACTOR, (min(DEFAULT_BOUNDS[0], max_pixels), max_pixels))
