"""A decoder pass and a decode step neither read values from the GPU nor copy to it.

They run on fake tensors, which have a device, a shape and a type but no data, so that no GPU is needed. Reading a value
raises an error, and so does mixing devices, except copies and single numbers, which are recorded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from counting import Operations
from ovis_core.networks.kv_cache import KVCache
from ovis_core.pixels import VisualInput
from ovis_core.text.decoding import GREEDY, Sampler, Sampling, prefill

GPU, HALF = torch.device("cuda", 0), torch.bfloat16
DRAWN = Sampling(top_p=0.9, top_k=0, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.1)


class Watch(Operations):
    """Records the names of operations, and of those that use a tensor in RAM."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []
        self.in_ram: list[str] = []

    def on_operation(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        self.all.append(func._schema.name)
        if any(isinstance(x, Tensor) and x.device.type == "cpu" for x in tree_leaves((args, kwargs, out))):
            self.in_ram.append(func._schema.name)


@pytest.fixture(autouse=True)
def fake(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fake tensors, with the attention that ComfyUI chooses on an NVIDIA GPU."""
    import comfy.ldm.flux.math
    from comfy.ldm.modules.attention import attention_pytorch

    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", attention_pytorch)
    with FakeTensorMode(), torch.inference_mode():
        yield


@pytest.fixture
def model(fake: None, config: Any) -> Any:
    from ovis_core.native.model import OvisU1
    from ovis_core.native.model_config import ModelConfig

    model_config = ModelConfig(config.decoder)
    model_config.set_inference_dtype(HALF, None)
    return OvisU1(model_config, device=GPU)


@pytest.fixture
def text(fake: None, config: Any) -> Any:
    from ovis_core.native.text_model import OvisTextModel

    return OvisTextModel(config, HALF, GPU, (), device=GPU, dtype=HALF)


@pytest.fixture
def cache(text: Any) -> KVCache:
    return prefill(text, list(range(20)), 8, GPU, HALF)[0]


def test_watch_detects_tensors_that_leave_the_gpu() -> None:
    x = torch.ones(3, device=GPU)
    with Watch() as watch:
        x + torch.tensor(2.0)
        x.cpu()
    assert watch.in_ram.count("aten::add") == watch.in_ram.count("aten::_to_copy") == 1
    with pytest.raises(DataDependentOutputException):
        x[0].item()


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_decoder_pass_stays_on_the_gpu(model: Any, batch: int, references: int, refined: bool) -> None:
    """A pass as in a sampling step, with conditions from RAM."""
    from ovis_core.native.model import REFINED

    config = model.diffusion_model.config
    named: dict[str, Any] = {"cross_attn": torch.empty(1, 9, config.context_in_dim)}
    if refined:
        named = {"cross_attn": torch.empty(1, 9, config.hidden_size), REFINED: True}
        named["pooled_output"] = torch.empty(1, config.hidden_size)
    latents = [torch.empty(1, 4, 12, 16)] * references
    conds = model.extra_conds(device=GPU, noise=torch.empty(batch, 4, 12, 16), reference_latents=latents, **named)
    for _ in range(2):  # the second time with cached tables
        with Watch() as watch:
            given = {name: cond.process_cond(batch_size=batch, area=None).cond for name, cond in conds.items()}
            out = model.apply_model(torch.empty(batch, 4, 12, 16, device=GPU), torch.ones(batch, device=GPU), **given)
        assert out.device == GPU
        assert len(watch.all) > 300
        assert not watch.in_ram


def test_prefill_copies_only_its_inputs_to_the_gpu(text: Any) -> None:
    picture = VisualInput(torch.empty(16 * 20, 3 * 14 * 14), (1, 16, 20))
    for read in (text.condition, lambda tokens, *where: prefill(text, tokens, 8, *where)[1]):
        with Watch() as watch:
            out = read([1, 2, picture, *range(9)], GPU, HALF)
        assert out.device == GPU
        # The words, the patches, and the picture's brackets.
        assert [name for name in watch.in_ram if name != "aten::lift_fresh"] == ["aten::_to_copy"] * 3


@pytest.mark.parametrize("captured", [True, False])
def test_decode_step_stays_on_the_gpu(text: Any, cache: KVCache, captured: bool) -> None:
    token, position = (torch.zeros(1, dtype=torch.int64, device=GPU) for _ in range(2))
    with Watch() as watch:
        logits = text.llm.decode_at(token, position, cache) if captured else text.llm.decode(token, cache)
    assert logits.device == GPU
    assert len(watch.all) > 100
    assert not watch.in_ram


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, Sampling()], ids=["greedy", "everything", "default"])
def test_sampling_a_token_stays_on_the_gpu(sampling: Sampling) -> None:
    sampler, logits = Sampler(sampling, 8, GPU), torch.empty(300, device=GPU)
    for _ in range(2):
        with Watch() as watch:
            token = sampler.sample(logits)
        assert token.device == GPU
        assert watch.all
        assert not watch.in_ram


def test_attention_of_single_calls_does_not_use_cudnn(model: Any, text: Any, cache: KVCache) -> None:
    seen = []

    class Attentions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.scaled_dot_product_attention:
                seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            return func(*args, **(kwargs or {}))

    before = torch.backends.cuda.cudnn_sdp_enabled()
    token = torch.zeros(1, dtype=torch.int64, device=GPU)
    with Attentions():
        text.llm.decode(token, cache)
        condition = text.condition(list(range(20)), GPU, HALF)
        model.refine(condition, GPU)
    assert seen == [False] * (2 * len(text.llm.blocks) + 2)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_rotation_uses_comfyui_s_kernel_if_there_is_one(
    model: Any, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.quant_ops

    if not hasattr(comfy.quant_ops, "ck"):
        pytest.skip("this ComfyUI has no kernels")
    from comfy_kitchen.backends import eager
    from comfy_kitchen.constraints import FunctionConstraints

    from ovis_core.native.layers.comfy_layers import attention

    q = torch.empty(1, 2, 5, 8, device=GPU, dtype=HALF)
    pe = torch.empty(1, 1, 5, 4, 2, 2, device=GPU)

    def kernels() -> int:
        with Watch() as watch:
            attention(q, q, q, pe)
        return watch.all.count("comfy_kitchen::apply_rope")

    registry = comfy.quant_ops.ck.registry
    with registry.use_backend("eager"):
        assert kernels() == 0
    registry.register("kernel", eager, {"apply_rope": FunctionConstraints()})
    with registry.use_backend("kernel"):
        assert kernels() == 1
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert kernels() == 0


def test_failed_captures_are_tried_again_up_to_a_limit(
    text: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ovis_core.text import cuda_graph

    tried: list[str] = []
    current, streams = object(), []

    def graph(fail: str) -> Any:
        def make(*_: Any) -> Any:
            tried.append(fail)
            raise {"memory": torch.cuda.OutOfMemoryError, "sync": RuntimeError}[fail](fail)

        return make

    # The part of the driver is replaced; the code between it and the answer is ours.
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    importlib.reload(cuda_graph)  # forget earlier captures
    cache = prefill(text, list(range(20)), 40, GPU, HALF)[0]

    def answer(fail: str | None) -> bool:
        """Whether a capture was tried."""
        before = len(tried)
        with monkeypatch.context() as patched:
            if fail is None:
                patched.setattr(cuda_graph, "CapturedDecode", lambda *_: tried.append("works") or "captured")
            else:
                patched.setattr(torch.cuda, "CUDAGraph", graph(fail))
            captured = cuda_graph.capture(text.llm, cache, 40)
        assert (captured == "captured") == (fail is None and len(tried) > before)
        return len(tried) > before

    assert answer("sync")
    assert answer("sync")
    assert answer(None)
    assert all(answer("memory") for _ in range(10))
    assert all(answer("sync") for _ in range(cuda_graph.MAX_FAILURES))
    assert not answer("sync")
    assert not answer(None)
    assert streams == [current] * (len(tried) - 1)
    assert len(caplog.records) == len(streams)
    assert "the next answer tries again" in caplog.text
    assert caplog.records[-1].getMessage().count("restart ComfyUI to try again") == 1
