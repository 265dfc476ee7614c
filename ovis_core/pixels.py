"""Images as tensors: checks, joining and resizing; frames of videos; and the patches that the visual tokenizer takes.

Resizing is PIL's bicubic on 8-bit pixels, as in the release.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from .sizes import condition_size, understanding_size
from .special_tokens import Placeholder
from .weights.config import HIDDEN_STRIDE, PATCH_SIZE

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class VisualInput:
    """One image, or the frames of one video, cut into patches.

    patches  (frames * rows * columns, channels * patch * patch) float32, CLIP-normalized; within a frame in groups
             of 2 x 2: row of groups, column of groups, row in group, column in group
    grid     (frames, rows, columns), in patches
    """

    patches: Tensor
    grid: tuple[int, int, int]
    kind: Placeholder = Placeholder.IMAGE

    @property
    def tokens(self) -> int:
        """Positions that it takes in the language model, begin and end included."""
        return self.patches.shape[0] // HIDDEN_STRIDE**2 + 2


def understanding_input(frames: Iterable[Image.Image], kind: Placeholder = Placeholder.IMAGE) -> VisualInput:
    """Patches of one image, or of a video's frames, which all take the first one's size."""
    pixels: list[Tensor] = []
    for frame in frames:
        height, width = pixels[0].shape[:2] if pixels else understanding_size(frame.height, frame.width)
        pixels.append(torch.tensor(np.asarray(resize(frame.convert("RGB"), height, width))))
    return patchify(pixels, kind)


class Frames(Protocol):
    """The frames of a video: how many, and each by its index from 0, as a tensor (height, width, channels), 0 to 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class SampledFrames:
    """At most `max_frames` of a video's frames, evenly spaced, including the first and the last.

    A frame is taken from `frames` when it is indexed, because `frames` may decode it then.
    """

    def __init__(self, frames: Frames, max_frames: int) -> None:
        self.frames = frames
        count = min(len(frames), max_frames)
        self.indexes = [round(i * (len(frames) - 1) / max(count - 1, 1)) for i in range(count)]

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: int) -> Tensor:
        return self.frames[self.indexes[index]]

    def __iter__(self) -> Iterator[Tensor]:
        return (self.frames[index] for index in self.indexes)


def need_images(name: str, batch: object) -> None:
    """Raises ValueError, with the name of the input, for anything but a batch (B, H, W, C) of one image or more."""
    if not isinstance(batch, Tensor) or batch.ndim != 4:
        found = f"{batch.ndim} dimensions" if isinstance(batch, Tensor) else type(batch).__name__
        raise ValueError(f"{name}: expected an IMAGE of 4 dimensions, got {found}; connect Load Image or VAE Decode.")
    if 0 in batch.shape:
        raise ValueError(
            f"{name}: expected at least one image, got an empty batch; connect a node that returns images."
        )


def to_pil(image: Tensor) -> Image.Image:
    """One image (height, width, channels), 0 to 1, as 8-bit RGB; grey is expanded to RGB, alpha is dropped."""
    pixels = _expand_grey(image)[..., :3].float().clamp(0.0, 1.0).mul_(255.0).round_()
    return Image.fromarray(pixels.to(torch.uint8).cpu().numpy())


def join(images: Sequence[Tensor]) -> Tensor:
    """Images (batch, height, width, channels) of one size as one batch: RGB, or RGBA if all have alpha.

    Grey is expanded to RGB. The batch is on the first image's device.
    """
    images = [_expand_grey(image) for image in images]
    channels = 4 if all(image.shape[-1] == 4 for image in images) else 3
    return torch.cat([image[..., :channels].to(images[0].device) for image in images])


def _expand_grey(image: Tensor) -> Tensor:
    return image[..., :1].expand(*image.shape[:-1], 3) if image.shape[-1] < 3 else image


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit RGB as (height, width, 3), 0 to 1."""
    return torch.from_numpy(np.asarray(image).copy()).float() / 255.0


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Stretched to height x width by PIL's bicubic; the same image if it has that size."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)


def restore(images: Tensor, height: int, width: int) -> Tensor:
    """Images (B, H, W, C), 0 to 1, resized to height x width."""
    if images.shape[1:3] == (height, width):
        return images
    pixels = images.movedim(-1, 1)
    pixels = torch.nn.functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return pixels.clamp(0.0, 1.0).movedim(1, -1)


def condition_input(image: Image.Image) -> VisualInput:
    """Patches of an edit's source, which has the edit's target size: resized twice, as in the release."""
    first = resize(image, *condition_size(image.height, image.width))
    return understanding_input([first])


def blank_input(height: int, width: int) -> VisualInput:
    """Patches of a blank white image, in place of the image of height x width pixels that will be generated."""
    height, width = understanding_size(*condition_size(height, width))
    return patchify([torch.full((height, width, 3), 255, dtype=torch.uint8)])


def patchify(frames: Sequence[Tensor], kind: Placeholder = Placeholder.IMAGE) -> VisualInput:
    """8-bit pixels of each frame (height, width, 3), sides multiples of `sizes.FACTOR` -> normalized patches."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    height, width, channels = frames[0].shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    patches = torch.empty(len(frames), rows * columns, channels * PATCH_SIZE**2)
    for frame, into in zip(frames, patches, strict=True):  # one at a time: a copy is as large as the frame's patches
        into[:] = rearrange(
            frame.float().div_(255.0).sub_(mean).div_(std),
            "(gh sh ph) (gw sw pw) c -> (gh gw sh sw) (c ph pw)",
            ph=PATCH_SIZE,
            pw=PATCH_SIZE,
            sh=HIDDEN_STRIDE,
            sw=HIDDEN_STRIDE,
        )
    return VisualInput(patches.flatten(0, 1), (len(frames), rows, columns), kind)
