"""Text on a GPU: the decode step is captured as a CUDA graph, and the tokens stay the same."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from helpers.pictures import picture
from ovis_core.pixels import to_tensor
from ovis_core.text import cuda_graph
from ovis_core.text.decoding import GREEDY, Sampling, decode

TOKENS = 24
SAMPLINGS = {
    "greedy": GREEDY,
    "default": Sampling(seed=3),
    "everything": Sampling(min_p=0.1, repetition_penalty=1.1, presence_penalty=0.1, seed=4),
}


@contextmanager
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of replayed steps."""
    counted = [0]
    step = cuda_graph.CapturedDecode.__call__

    def count(self: Any, token: torch.Tensor) -> torch.Tensor:
        counted[0] += 1
        return step(self, token)

    with monkeypatch.context() as patched:
        patched.setattr(cuda_graph.CapturedDecode, "__call__", count)
        yield counted


def generated(clip: Any, tokens: list[Any], count: int = TOKENS, sampling: Sampling = GREEDY) -> list[int]:
    model = clip.cond_stage_model
    cache, logits = model.prefill(tokens, count)
    return list(decode(model, cache, logits, sampling, count, stop_at_end=False))


def plainly(clip: Any, *arguments: Any, **named: Any) -> list[int]:
    """As `generated`, without a CUDA graph."""
    model = clip.cond_stage_model
    model.cuda_graphs = False
    try:
        return generated(clip, *arguments, **named)
    finally:
        del model.cuda_graphs


def test_answers_are_the_authors(
    loaded: tuple[Any, ...], golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ovis_core.native.understanding import understand

    images = [to_tensor(picture(256, 192)), to_tensor(picture(200, 200, 1))]
    words = "Write a haiku about \u96ea and émigrés \U0001f408."
    cases = {
        "single": ("What is it?", images[:1]),
        "multi": ("Describe each image.", images),
        "text_only": (words, []),
    }
    with caplog.at_level(logging.WARNING):
        for name, (prompt, given) in cases.items():
            with replays(monkeypatch) as counted:
                answer = understand(loaded[1], prompt, given, (), 16, TOKENS, False, GREEDY)
            assert list(answer.conversation.tokens[-26:-2]) == golden["generate"][name]["output_ids"]
            assert counted == [TOKENS - 1]
    assert not caplog.records


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16", "fp16", "fp8_e4m3fn"])
def test_tokens_are_those_of_plain_steps(
    load: Any, weight_dtype: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load(weight_dtype)[1]
    with replays(monkeypatch) as counted:
        for prompt in (list(range(20)), list(range(300))):
            expected = plainly(clip, prompt, sampling=sampling)
            assert counted == [0]
            assert generated(clip, prompt, sampling=sampling) == expected
            assert counted == [TOKENS - 1]
            counted[0] = 0


def test_memory_does_not_grow_over_many_answers(loaded: tuple[Any, ...], gpu: torch.device) -> None:
    clip, used = loaded[1], []
    for length in (20, 40, 60, 80, 25, 45, 65, 85):
        for _ in range(3):
            generated(clip, list(range(length)), 32)
            torch.cuda.synchronize(gpu)
            used.append(torch.cuda.memory_allocated(gpu))
    assert max(used[12:]) <= max(used[:12]), used


def test_offloaded_weights_generate_the_same_text_without_a_graph(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, prompt = load("fp32")[1], list(range(40))
    expected = generated(clip, prompt)
    patcher = clip.patcher
    device = patcher.load_device
    patcher.offload_device = torch.device("cpu")  # --gpu-only would leave it on the GPU
    patcher.detach()
    patcher.load(device, lowvram_model_memory=patcher.model_size() // 2)
    with replays(monkeypatch) as counted:
        assert generated(clip, prompt) == expected
    assert counted == [0]
    patcher.detach()
    patcher.load(device, full_load=True)
    with replays(monkeypatch) as counted:
        assert generated(clip, prompt) == expected
    assert counted == [TOKENS - 1]


def test_other_threads_may_use_the_gpu_during_a_capture(
    loaded: tuple[Any, ...], gpu: torch.device, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as the preview of another node, or a pack that measures the memory."""
    done = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not done.is_set():
                # It allocates, copies and waits; none of this is allowed in a capture of this thread.
                float(torch.randn(1 << 20).to(gpu).sum())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    expected = plainly(loaded[1], list(range(30)))
    thread.start()
    try:
        with caplog.at_level(logging.WARNING):
            assert all(generated(loaded[1], list(range(30))) == expected for _ in range(20))
    finally:
        done.set()
        thread.join()
    assert not failed
    assert not caplog.records


def test_a_step_waits_only_for_the_token(loaded: tuple[Any, ...]) -> None:
    model = loaded[1].cond_stage_model
    cache, logits = model.prefill(list(range(20)), TOKENS)
    with model.pinned(cache.keys) as pinned:
        assert pinned
        step = cuda_graph.capture(model.llm, cache, TOKENS)
        token = logits.argmax(keepdim=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                token = step(token).argmax(keepdim=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
