"""The memory estimate of a pass, compared with the bytes of its tensors.

Counted at full size on the meta device: shapes are real, nothing is computed. Attention is counted like a kernel
without an attention matrix, because ComfyUI uses this form of the estimate for those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from counting import LiveBytes
from full_size import FULL
from ovis_core.multimodal import Multimodal, sequence_length
from ovis_core.networks.decoder import Decoder
from ovis_core.networks.layers import Layers
from ovis_core.networks.rotary import rotate_pairs
from ovis_core.pixels import VisualInput
from ovis_core.text.decoding import prefill


def lean_attention(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, mask: Any = None, transformer_options: Any = None
) -> Tensor:
    """Shapes and bytes of an attention without a matrix."""
    if pe is not None:
        q, k = rotate_pairs(q, pe), rotate_pairs(k, pe)
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32])
def decoder(request: pytest.FixtureRequest, config: Any) -> Decoder:
    full = FULL.decoder
    return Decoder(full, Layers(attention=lean_attention, dtype=request.param, device="meta"))


@pytest.mark.parametrize(
    ("batch", "height", "width", "text", "references"),
    [(1, 128, 128, 330, 0), (2, 128, 128, 330, 0), (1, 64, 64, 330, 0), (1, 192, 128, 4000, 0), (1, 124, 124, 400, 2)],
)
def test_memory_estimate_of_the_decoder(
    comfyui: Path, decoder: Decoder, config: Any, batch: int, height: int, width: int, text: int, references: int
) -> None:
    from ovis_core.native.model import OvisU1
    from ovis_core.native.model_config import ModelConfig

    full, dtype = decoder.config, next(decoder.parameters()).dtype
    meta = {"dtype": dtype, "device": "meta"}
    latent = torch.empty(batch, 4, height, width, **meta)
    context, vector = torch.empty(batch, text, full.hidden_size, **meta), torch.empty(batch, full.hidden_size, **meta)
    counter = LiveBytes([*decoder.parameters(), latent, context, vector])
    with torch.no_grad(), counter:
        decoder(latent, torch.empty(batch, device="meta"), context, vector, [latent] * references)

    # The shapes that ComfyUI asks for, through our model's own accounting, in the formula of BaseModel.
    small = OvisU1(ModelConfig(config.decoder))
    shape = small.memory_usage_shape_process["c_crossattn"](list(context.shape))
    area = batch * height * width * (1 + references) + shape[0] * shape[2]
    estimate = area * dtype.itemsize * 0.01 * ModelConfig(full).memory_usage_factor * 2**20
    assert counter.peak < estimate < 1.25 * counter.peak


def test_memory_estimate_includes_text_and_references(comfyui: Path, config: Any) -> None:
    from ovis_core.native.model import OvisU1
    from ovis_core.native.model_config import ModelConfig

    model = OvisU1(ModelConfig(config.decoder))
    alone = model.memory_required([1, 4, 128, 128])
    shapes = model.extra_conds_shapes(
        cross_attn=torch.empty(1, 4096, 128), reference_latents=[torch.empty(1, 4, 64, 64), torch.empty(1, 4, 64, 192)]
    )
    both = model.memory_required([1, 4, 128, 128], {name: [shape] for name, shape in shapes.items()})
    assert both == pytest.approx(alone * 3)
    # References of a batch count with each of its images, before loading as in a pass.
    latents = [torch.empty(2, 4, 64, 64), torch.empty(2, 4, 32, 16)]
    conds = model.extra_conds(cross_attn=torch.zeros(2, 9, 128), reference_latents=latents, device=torch.device("cpu"))
    shapes = model.extra_conds_shapes(reference_latents=latents)
    assert shapes["ref_latents"] == conds["ref_latents"].size() == [1, 4, 2 * (64 * 64 + 32 * 16)]


@pytest.mark.parametrize("max_new_tokens", [None, 512], ids=["condition", "answer"])
@pytest.mark.parametrize(
    ("frames", "rows", "columns", "text"),
    [(1, 32, 32, 40), (1, 110, 110, 40), (1, 32, 32, 4000), (1, 32, 32, 12000), (8, 56, 100, 40)],
)
def test_text_encoder_estimate(frames: int, rows: int, columns: int, text: int, max_new_tokens: int | None) -> None:
    """The visual tokenizer's probabilities need the most memory, or the language model's states, or its cache."""
    if max_new_tokens is None and text > 10000:
        pytest.skip("no condition is that long")
    # Fake tensors, because some layers would read a value of meta tensors.
    cpu, half = torch.device("cpu"), torch.bfloat16
    with FakeTensorMode(), torch.no_grad():
        model = Multimodal(FULL, Layers(attention=lean_attention, dtype=half, device="cpu"))
        picture = VisualInput(torch.empty(frames * rows * columns, 3 * 14 * 14), (frames, rows, columns))
        tokens = [picture, *range(text)]
        counter = LiveBytes([*model.parameters(), picture.patches])
        with counter:
            if max_new_tokens is None:
                model.condition(tokens, cpu, half)
            else:
                cache, _ = prefill(model, tokens, max_new_tokens, cpu, half)
                model.llm.decode(torch.zeros(1, dtype=torch.int64), cache)
    length = sequence_length(tokens)
    estimate = model.memory_needed(
        length, rows * columns // 4, half, 0 if max_new_tokens is None else length + max_new_tokens
    )
    assert counter.peak < estimate < 1.25 * counter.peak
