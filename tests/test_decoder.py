"""Refiner and decoder in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import close
from ovis_core import layout
from ovis_core.networks.decoder import Decoder, pack, unpack


@pytest.fixture(scope="module")
def decoder(config: Any, weights: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(config.decoder)
    own = {
        name.removeprefix(layout.DECODER): value for name, value in weights.items() if name.startswith(layout.DECODER)
    }
    decoder.load_state_dict({name.replace("_norm.scale", "_norm.weight"): value for name, value in own.items()})
    return decoder.eval().requires_grad_(False)


def test_refiner(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    tokens, pooled = decoder.txt_in(tensors["cond/t2i"])
    close(tokens, tensors["refiner/t2i/tokens"])
    close(pooled, tensors["refiner/t2i/pooled"])
    close(decoder.refine(tensors["cond/t2i"])[1], tensors["refiner/t2i/vector"])


@pytest.mark.parametrize("time", ["1.0", "0.73", "0.05"])
def test_velocity(decoder: Decoder, tensors: dict[str, Tensor], time: str) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"])
    velocity = decoder(tensors["t2i/noise"], torch.tensor([float(time)]), context, vector)
    close(velocity, tensors[f"backbone/t2i/t{time}"])


def test_velocity_with_a_reference(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    context, vector = decoder.refine(tensors["edit/cond"])
    time, references = torch.tensor([0.9]), [tensors["edit/ref_latent_mode"]]
    velocity = decoder(tensors["edit/noise"], time, context, vector, references)
    close(velocity, tensors["backbone/edit/t0.9"])
    # A second reference takes part, at the next index: which of two comes first makes a difference.
    other = [references[0].flip(-1)]
    one, two = (
        decoder(tensors["edit/noise"], time, context, vector, order)
        for order in (references + other, other + references)
    )
    assert (one - velocity).abs().max() > 1e-3
    assert (one - two).abs().max() > 1e-4


def test_packing_is_undone() -> None:
    latent = torch.randn(2, 4, 7, 10)
    assert pack(latent).shape == (2, 4 * 5, 16)
    assert torch.equal(unpack(pack(latent), 7, 10), latent)
