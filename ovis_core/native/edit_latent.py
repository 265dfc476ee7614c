"""The LATENT of an edit: it stores the source image, and is decoded with its mask and its source's size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ..pixels import restore

SOURCE = "ovis_u1_source"  # key of an `EditSource` in an edit's LATENT


@dataclass(frozen=True)
class EditSource:
    """The source image of an edit, stored in the LATENT: its size in pixels, and its latents at the edit's size."""

    height: int
    width: int
    samples: Tensor


def decode(vae: comfy.sd.VAE, latent: dict[str, Any], restore_size: bool = False) -> Tensor:
    """IMAGE (B, H, W, 3) of a LATENT; with `restore_size` at the size of the edit's source.

    If an edit's latent has a noise mask and still equals the source's outside of it, every pixel there comes from the
    source, encoded and decoded by itself: the VAE's norms and attention would spread a change inside the mask over the
    whole image. Raises ValueError with `restore_size` if the LATENT has no source size, or its aspect ratio is
    not that of the source.
    """
    samples: Tensor = latent["samples"]
    source: EditSource | None = latent.get(SOURCE)
    if restore_size:
        _check_size(samples, source)

    def pixels(samples: Tensor) -> Tensor:
        images = vae.decode(samples)
        return restore(images, source.height, source.width) if restore_size else images

    images = pixels(samples)
    mask = latent.get("noise_mask")
    if source is None or mask is None:
        return images
    kept = _kept_sources(samples, source.samples, comfy.utils.reshape_mask(mask, samples.shape))
    round_trips = {index: pixels(source.samples[index : index + 1])[0] for index in set(kept) - {None}}
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).to(images.device, torch.float32)
    inside = torch.nn.functional.interpolate(mask, images.shape[1:3], mode="bilinear").movedim(1, -1) > 0
    inside = comfy.utils.repeat_to_batch_size(inside, images.shape[0])
    return torch.stack(
        [
            image if index is None else torch.where(within, image, round_trips[index])
            for image, within, index in zip(images, inside, kept, strict=True)
        ]
    )


def _check_size(samples: Tensor, source: EditSource | None) -> None:
    """Raises ValueError if latents have no source image or a different aspect ratio; scaled latents are accepted."""
    if source is None:
        raise ValueError(
            "samples: expected the latent of an edit, because restore_size is on, got a latent that is not from an "
            "edit; connect the latent of Ovis-U1 Edit Encode to Ovis-U1 Sampler, or turn off restore_size."
        )
    (height, width), (own_height, own_width) = samples.shape[-2:], source.samples.shape[-2:]
    if abs(height * own_width - width * own_height) > max(own_height, own_width):
        raise ValueError(
            "samples: expected the aspect ratio of the edit's source image, because restore_size is on, got a "
            "different one; remove the node that changes the latent's shape, or turn off restore_size."
        )


def _kept_sources(samples: Tensor, sources: Tensor, mask: Tensor) -> list[int | None]:
    """For each image of a batch the index of the source that it still equals outside the mask, or None.

    Latents may have been repeated, selected, flipped, or sampled again with another mask since the edit began.
    """
    if samples.shape[1:] != sources.shape[1:]:
        return [None] * len(samples)
    limit = 1e-4 * float(sources.abs().max())
    outside = (mask == 0).to(samples.device)

    def kept(image: Tensor, around: Tensor) -> int | None:
        if not around.any():
            return None
        gaps = ((image - sources.to(samples)) * around).abs().amax(dim=(1, 2, 3))
        return int(gaps.argmin()) if float(gaps.min()) <= limit else None

    return [kept(image, around) for image, around in zip(samples, outside, strict=True)]
