"""Pictures -> the patches that the visual tokenizer reads.

Resizing is PIL's bicubic on 8-bit pixels, as in the release.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from .prompts import Picture
from .sizes import condition_size, understanding_size

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisualInput:
    """One picture, or the frames of one video, cut into patches.

    patches  (frames * rows * columns, channels * patch * patch) float32, CLIP-normalized; within a frame in groups
             of 2 x 2: row of groups, column of groups, row in group, column in group
    grid     (frames, rows, columns), in patches
    """

    patches: Tensor
    grid: tuple[int, int, int]
    kind: Picture = Picture.IMAGE

    @property
    def tokens(self) -> int:
        """Positions that it takes in the language model, begin and end included."""
        return self.patches.shape[0] // 4 + 2


def understanding_input(
    frames: list[Image.Image], kind: Picture = Picture.IMAGE, patch: int = 14, stride: int = 2
) -> VisualInput:
    """Patches of one picture, or of a video's frames, which all take the first one's size."""
    height, width = understanding_size(frames[0].height, frames[0].width)
    pixels = np.stack([np.asarray(_resize(frame.convert("RGB"), height, width)) for frame in frames])
    return patchify(torch.from_numpy(pixels), patch, stride, kind)


def blank_input(height: int, width: int, patch: int = 14, stride: int = 2) -> VisualInput:
    """Patches of the blank white picture that stands for an image yet to be made, of size height x width pixels."""
    height, width = understanding_size(*condition_size(height, width))
    return patchify(torch.full((1, height, width, 3), 255, dtype=torch.uint8), patch, stride)


def patchify(pixels: Tensor, patch: int, stride: int, kind: Picture = Picture.IMAGE) -> VisualInput:
    """8-bit pixels (frames, height, width, 3), sides multiples of patch * stride -> normalized patches."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    x = (pixels.float() / 255.0 - mean) / std
    frames, height, width, _ = x.shape
    patches = rearrange(
        x,
        "t (gh sh ph) (gw sw pw) c -> (t gh gw sh sw) (c ph pw)",
        ph=patch,
        pw=patch,
        sh=stride,
        sw=stride,
    )
    return VisualInput(patches, (frames, height // patch, width // patch), kind)


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)
