"""Ovis-U1 is recognised by the names of tensors, and other models are not."""

from __future__ import annotations

import pytest

from ovis_core.weights import layout
from ovis_core.weights.components import DECODER, KINDS, TEXT, VAE, Kind
from ovis_core.weights.recognition import has_component, has_decoder, has_text_encoder
from ovis_core.weights.release import RELEASE
from ovis_core.weights.safetensors_file import CheckpointError


def names(kind: Kind, prefix: str) -> set[str]:
    return {prefix + name for name in kind.shapes(RELEASE)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.title)
def test_components_are_recognised_under_each_prefix(kind: Kind) -> None:
    # Any SDXL VAE has a release's names, so a VAE counts only with ComfyUI's prefix.
    prefixes = [kind.comfy_prefix] if kind == VAE else kind.prefixes
    for prefix in prefixes:
        found = names(kind, prefix)
        assert [other for other in KINDS if has_component(other, found)] == [kind]
    assert not has_component(kind, names(kind, "another."))


def test_a_decoder_and_a_text_encoder() -> None:
    assert has_decoder(names(DECODER, "model.diffusion_model."))
    assert has_text_encoder(names(TEXT, ""))
    assert not has_decoder({"double_blocks.0.img_attn.qkv.weight"})
    assert not has_text_encoder({"model.norm.weight"})
    assert not has_decoder(set())
    with pytest.raises(CheckpointError, match="no diffusion model; choose it in Load CLIP"):
        has_decoder(names(TEXT, ""))


def test_one_file_of_a_release() -> None:
    release = [name for name, _ in layout.tensor_shapes(RELEASE)]
    for part in (release[: len(release) // 2], release[len(release) // 2 :], release):
        for check in (has_decoder, has_text_encoder):
            with pytest.raises(CheckpointError, match="one of the files of the Ovis-U1 release"):
                check(part)
