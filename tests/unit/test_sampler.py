"""Logits to tokens, compared with transformers' own sampling steps."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process

from ovis_core.text.decoding import Sampler, Sampling

CPU = torch.device("cpu")
ALL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def logits(seed: int = 0, words: int = 500) -> torch.Tensor:
    return 4 * torch.randn(words, generator=torch.Generator().manual_seed(seed))


def candidates(sampling: Sampling, scores: torch.Tensor, written: list[int]) -> torch.Tensor:
    """Probability of each word."""
    sampler = Sampler(sampling, 100, CPU)
    sampler.generated[: len(written)] = torch.tensor(written, dtype=torch.int64)
    sampler.count = len(written)
    probs, tokens = sampler.filter(sampler.penalize(scores))
    return torch.zeros(len(scores)).index_copy(0, tokens, probs / probs.sum())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1, 0), (7, 1, 0), (0, 0.6, 0), (0, 1, 0.1), (30, 0.9, 0.05)])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_candidates_match_transformers(
    temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    scores, written = logits(), [3, 5, 5, 100, int(logits().argmax())]
    steps = logits_process.LogitsProcessorList(
        [
            logits_process.RepetitionPenaltyLogitsProcessor(penalty),
            logits_process.TemperatureLogitsWarper(temperature),
            *([logits_process.TopKLogitsWarper(top_k)] if top_k else []),
            logits_process.TopPLogitsWarper(float(top_p)),
            logits_process.MinPLogitsWarper(min_p),
        ]
    )
    expected = steps(torch.tensor([written]), scores[None].clone())[0].softmax(0)
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty=penalty)
    actual = candidates(sampling, scores, written)
    assert torch.equal(actual > 0, expected > 0)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top_k", [-1, 0, 500, 10**9])
def test_top_k_without_effect(top_k: int) -> None:
    actual = candidates(Sampling(**{**ALL, "top_k": top_k}), logits(), [])
    torch.testing.assert_close(actual, logits().softmax(0))


def test_presence_penalty_is_subtracted_once() -> None:
    scores = logits()
    expected = scores.clone()
    expected[[3, 5]] -= 2.0
    actual = candidates(Sampling(**ALL, presence_penalty=2.0), scores, [3, 5, 5])
    torch.testing.assert_close(actual, expected.softmax(0))


def test_sampled_tokens_follow_the_probabilities() -> None:
    scores, count = logits(words=6), 20000
    sampler = Sampler(Sampling(**ALL), count, CPU)
    drawn = torch.cat([sampler.sample(scores) for _ in range(count)])
    frequency = torch.bincount(drawn, minlength=6) / count
    assert (frequency - scores.softmax(0)).abs().max() < 0.015


def test_seeds() -> None:
    def drawn(seed: int) -> list[int]:
        sampler = Sampler(Sampling(**ALL, seed=seed), 50, CPU)
        return [int(sampler.sample(logits(i))) for i in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0.0), Sampling(temperature=0.0005), Sampling(top_k=1), Sampling(top_p=0.0)]
)
def test_low_temperature_is_greedy(sampling: Sampling) -> None:
    sampler = Sampler(sampling, 50, CPU)
    assert [int(sampler.sample(logits(i))) for i in range(50)] == [int(logits(i).argmax()) for i in range(50)]


@pytest.mark.parametrize("temperature", [0.0, 0.00001])
@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_penalties_of_greedy_decoding_match_transformers(temperature: float, penalty: float) -> None:
    steps = logits_process.RepetitionPenaltyLogitsProcessor(penalty)
    sampler, written = Sampler(Sampling(temperature, repetition_penalty=penalty), 60, CPU), []
    for i in range(60):
        scores = logits(i % 3, words=30)
        expected = steps(torch.tensor([written], dtype=torch.int64), scores[None].clone())[0]
        written.append(int(expected.argmax()))
        assert int(sampler.sample(scores)) == written[-1]
    plain = Sampler(Sampling(temperature), 60, CPU)
    # Under 1, generated tokens become more likely.
    assert (written == [int(plain.sample(logits(i % 3, words=30))) for i in range(60)]) == (penalty < 1)


def test_presence_penalty_acts_on_greedy_decoding() -> None:
    sampler, scores = Sampler(Sampling(temperature=0.0, presence_penalty=100.0), 6, CPU), logits(words=6)
    assert [int(sampler.sample(scores)) for _ in range(6)] == scores.argsort(descending=True).tolist()
