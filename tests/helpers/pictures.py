"""The test images of tests/golden/README.md."""

from __future__ import annotations

import numpy as np
from PIL import Image


def picture(width: int, height: int, k: int = 0) -> Image.Image:
    """8-bit RGB: (3x + 5y + 40c + 37 ((x // 16 + y // 16) mod 2) + 29k) mod 256."""
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    values = 3 * x + 5 * y + 40 * c + 37 * ((x // 16 + y // 16) % 2) + 29 * k
    return Image.fromarray((values % 256).astype(np.uint8))
