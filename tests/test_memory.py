"""The memory that a pass is said to need against the bytes that its tensors take.

Counted at full size on the meta device: shapes are real, nothing is computed. Attention is counted as by a kernel that
keeps no attention matrix, which is where ComfyUI uses this form of the estimate.
"""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ovis_core.multimodal import Multimodal, sequence_length
from ovis_core.networks.attention import apply_rotary
from ovis_core.networks.decoder import Decoder
from ovis_core.networks.layers import Layers
from ovis_core.pixels import VisualInput

FULL_SIZE = {
    "vec_in_dim": 1536,
    "context_in_dim": 4096,
    "hidden_size": 1536,
    "num_heads": 12,
    "depth": 6,
    "depth_single_blocks": 12,
    "axes_dim": (16, 56, 56),
}
FULL_LANGUAGE = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
FULL_VISION = {
    "vocab_size": 65536,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, from now on."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def lean_attention(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, mask: Any = None, transformer_options: Any = None
) -> Tensor:
    """Shapes and bytes of an attention that keeps no matrix."""
    if pe is not None:
        q, k = apply_rotary(q, pe), apply_rotary(k, pe)
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32])
def decoder(request: pytest.FixtureRequest, config: Any) -> Decoder:
    full = dataclasses.replace(config.decoder, **FULL_SIZE)
    return Decoder(full, Layers(attention=lean_attention, dtype=request.param, device="meta"))


@pytest.mark.parametrize(
    ("batch", "height", "width", "text", "references"),
    [(1, 128, 128, 330, 0), (2, 128, 128, 330, 0), (1, 64, 64, 330, 0), (1, 192, 128, 4000, 0), (1, 124, 124, 400, 2)],
)
def test_estimate(
    comfyui: Path, decoder: Decoder, config: Any, batch: int, height: int, width: int, text: int, references: int
) -> None:
    from ovis_core.native.model import ModelConfig, OvisU1

    full, dtype = decoder.config, decoder.dtype
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
    assert counter.peak < estimate < 1.4 * counter.peak


def test_text_and_references_count(comfyui: Path, config: Any) -> None:
    from ovis_core.native.model import ModelConfig, OvisU1

    model = OvisU1(ModelConfig(config.decoder))
    alone = model.memory_required([1, 4, 128, 128])
    shapes = model.extra_conds_shapes(
        cross_attn=torch.empty(1, 4096, 128), reference_latents=[torch.empty(1, 4, 64, 64), torch.empty(1, 4, 64, 192)]
    )
    both = model.memory_required([1, 4, 128, 128], {name: [shape] for name, shape in shapes.items()})
    assert both == pytest.approx(alone * 3)


@pytest.mark.parametrize(("rows", "columns", "text"), [(32, 32, 40), (110, 110, 40), (32, 32, 4000)])
def test_text_encoder_estimate(config: Any, rows: int, columns: int, text: int) -> None:
    """The visual tokenizer's words are what counts, or the language model's states under a long text."""
    full = dataclasses.replace(
        config,
        language=dataclasses.replace(config.language, **FULL_LANGUAGE),
        vision=dataclasses.replace(config.vision, **FULL_VISION),
    )
    # Fake tensors and not meta ones, of which transformers would ask a value.
    with FakeTensorMode(), torch.no_grad():
        model = Multimodal(full, Layers(attention=lean_attention, dtype=torch.bfloat16, device="cpu"))
        picture = VisualInput(torch.empty(rows * columns, 3 * 14 * 14), (1, rows, columns))
        tokens = [picture, *range(text)]
        counter = LiveBytes([*model.parameters(), picture.patches])
        with counter:
            model.condition(tokens, torch.device("cpu"), torch.bfloat16)
    estimate = model.memory_needed(sequence_length(tokens), picture.tokens, torch.bfloat16)
    assert counter.peak < estimate < 2 * counter.peak
