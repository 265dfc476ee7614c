"""The norms' eps. The small model's activations are so large that a wrong eps has no effect in the other tests."""

from __future__ import annotations

from typing import Any

from torch import nn

from ovis_core.multimodal import Multimodal
from ovis_core.networks.decoder import Decoder
from ovis_core.networks.layers import Layers


def eps(module: nn.Module, *names: str) -> set[float]:
    """eps of every norm below the named children."""
    found = set()
    for name in names or ("",):
        for child in module.get_submodule(name).modules():
            if hasattr(child, "eps"):
                found.add(child.eps)
    return found


def test_eps(config: Any) -> None:
    layers = Layers(device="meta")
    text, decoder = Multimodal(config, layers), Decoder(config.decoder, layers)
    assert eps(decoder) == {1e-6}
    assert eps(text.visual_tokenizer.backbone) == {config.vision.rms_norm_eps} == {1e-5}
    assert eps(text.visual_tokenizer.head) == {1e-5}
    assert eps(text.llm) == {config.language.rms_norm_eps} == {1e-6}
