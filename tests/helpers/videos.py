"""Video files."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_video(file: Path, frames: Sequence[Image.Image], codec: str = "ffv1", pixels: str = "bgr0") -> Path:
    """A file of these frames, without loss by default."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return file
