"""Block-wise merging of two decoders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from comfy.model_patcher import ModelPatcher

from ..weights.config import DecoderConfig
from ..weights.layer_formats import OLDER_SCALE, QUANT_SUFFIXES

PREFIX = "diffusion_model."


def blocks(config: DecoderConfig) -> Iterator[str]:
    """Prefixes of the decoder's weights, in the order of a pass."""
    yield from ("txt_in.", "vector_in.", "time_in.", "img_in.")
    yield from (f"double_blocks.{i}." for i in range(config.depth))
    yield from (f"single_blocks.{i}." for i in range(config.depth_single_blocks))
    yield "final_layer."


def merge(first: ModelPatcher, second: ModelPatcher, ratios: Mapping[str, float]) -> ModelPatcher:
    """A MODEL with weights ratio * first + (1 - ratio) * second, where `ratios` has a ratio for each of `blocks`.

    Both models stay unchanged: the result is a clone, and its weights are mixed when they are loaded. Raises ValueError
    if the two have different shapes.
    """
    shapes = [
        {
            name: weight.shape
            for name, weight in patcher.model.diffusion_model.named_parameters()
            if not name.endswith((OLDER_SCALE, *QUANT_SUFFIXES))
        }
        for patcher in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "model2: expected layers of the same shapes as in model1, got different shapes; connect an Ovis-U1 MODEL "
            "of the same size."
        )
    mixed = first.clone()
    for name, patches in second.get_key_patches(PREFIX).items():
        block = next((block for block in ratios if name.startswith(f"{PREFIX}{block}")), None)
        if block is not None:
            mixed.add_patches({name: patches}, 1.0 - ratios[block], ratios[block])
    return mixed
