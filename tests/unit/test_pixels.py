"""Images of different channels as one batch."""

from __future__ import annotations

import pytest
import torch

from ovis_core.pixels import join


@pytest.mark.parametrize(
    ("channels", "joined"), [((1, 3), 3), ((3, 1), 3), ((4, 3), 3), ((2, 4), 3), ((1, 1), 3), ((4, 4), 4)]
)
def test_images_of_different_channels_are_joined(channels: tuple[int, int], joined: int) -> None:
    """Each keeps its colours: grey becomes RGB, and alpha stays only if all have it."""
    images = [torch.rand(1, 2, 3, count) for count in channels]
    batch = join(images)
    assert batch.shape == (2, 2, 3, joined)
    for made, image in zip(batch, images, strict=True):
        expected = image[0, ..., :joined] if image.shape[-1] > 2 else image[0, ..., :1].expand(-1, -1, 3)
        assert torch.equal(made, expected)
