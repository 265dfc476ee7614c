"""Questions to tokens, in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from answering import Transformers, greedy
from helpers.compare import close
from helpers.pictures import picture
from ovis_core.multimodal import Multimodal, Token, sequence_length, tokens_after
from ovis_core.networks import language
from ovis_core.pixels import VisualInput, understanding_input
from ovis_core.special_tokens import Control, Placeholder
from ovis_core.text import decoding, prompts
from ovis_core.text.conversation import split_thinking, with_answer
from ovis_core.text.decoding import GREEDY, Sampling, decode, prefill
from ovis_core.text.tokenizer import Tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer(qwen25_tokenizer: Path) -> Tokenizer:
    return Tokenizer(qwen25_tokenizer)


def prompt(tokenizer: Tokenizer, parts: list[prompts.PromptPart], pictures: list[VisualInput]) -> list[Token]:
    left = iter(pictures)
    tokens = [next(left) if isinstance(t, Placeholder) else t for t in tokenizer.encode(parts)]
    assert next(left, None) is None
    return tokens


@pytest.fixture(scope="module", params=["single", "multi", "video", "text_only"])
def case(request: pytest.FixtureRequest, tokenizer: Tokenizer, golden: dict[str, Any]) -> tuple[list[Token], Any]:
    """A prompt of the golden set, and the authors' answer."""
    first, second = understanding_input([picture(256, 192)]), understanding_input([picture(200, 200, 1)])
    frames = understanding_input([picture(112, 84, k) for k in range(3)], Placeholder.VIDEO)
    made = {
        "single": (prompts.question("What is it?", images=1), [first]),
        "multi": (prompts.question("Describe each image.", images=2), [first, second]),
        "video": (prompts.question("Describe the video.", video=True), [frames]),
        "text_only": (prompts.question("Write a haiku about \u96ea and émigrés \U0001f408."), []),
    }
    parts, pictures = made[request.param]
    tokens = prompt(tokenizer, [*parts, *prompts.answer_start()], pictures)
    ids = [
        {Placeholder.IMAGE: -200, Placeholder.VIDEO: -201}[t.kind] if isinstance(t, VisualInput) else t for t in tokens
    ]
    name = {"single": "understand"}.get(request.param, request.param)
    assert ids == golden["prompts"][name]["raw_input_ids"]
    return tokens, golden["generate"][request.param]


def generate(text_model: Multimodal, tokens: list[Token], max_new_tokens: int, **kwargs: Any) -> list[int]:
    cache, logits = prefill(text_model, tokens, max_new_tokens, CPU, torch.float32, **kwargs)
    return list(decode(text_model, cache, logits, GREEDY, max_new_tokens, stop_at_end=False))


def test_greedy_answers_match_the_authors_code(text_model: Multimodal, case: tuple[list[Token], Any]) -> None:
    tokens, expected = case
    assert sequence_length(tokens) == expected["input_len"]
    embeds = text_model.embed(tokens, CPU, torch.float32)
    assert float(embeds.double().sum()) == pytest.approx(expected["input_embeds_sum"], abs=1e-3)
    cache, logits = prefill(text_model, tokens, 24, CPU, torch.float32)
    top = logits.topk(5)
    assert top.indices.tolist() == expected["first_step_top5_ids"]
    assert top.values.tolist() == pytest.approx(expected["first_step_top5_logits"], abs=1e-3)
    assert list(decode(text_model, cache, logits, GREEDY, 24, stop_at_end=False)) == expected["output_ids"]
    assert cache.length == sequence_length(tokens) + 23


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_repetition_penalty_of_greedy_decoding_matches_transformers(
    text_model: Multimodal, config: Any, weights: dict[str, Tensor], case: tuple[list[Token], Any], penalty: float
) -> None:
    """Called with embeddings like in the authors' code: `generate` then counts only the answer, not the prompt."""
    tokens, expected = case
    reference = Transformers(config.language, weights, CPU).model
    embeds = text_model.embed(tokens, CPU, torch.float32)[None]
    ids = reference.generate(inputs_embeds=embeds, repetition_penalty=penalty, **greedy(24))[0].tolist()
    cache, logits = prefill(text_model, tokens, 24, CPU, torch.float32)
    sampling = Sampling(temperature=0.0, repetition_penalty=penalty)
    assert list(decode(text_model, cache, logits, sampling, 24, stop_at_end=False)) == ids
    assert (ids == expected["output_ids"]) == (penalty == 1.0)


def test_chat_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    seen = understanding_input([picture(256, 192)])
    first = prompt(tokenizer, [*prompts.question("What is it?", images=1), *prompts.answer_start()], [seen])
    talk = with_answer(first, [*tokenizer.encode(["A cat."]), Control.TURN_END], False, tokenizer)
    tokens = [*talk, *tokenizer.encode([*prompts.question("What colour?"), *prompts.answer_start()])]
    assert [-200 if isinstance(t, VisualInput) else t for t in tokens] == golden["prompts"]["chat"]["raw_input_ids"]


def test_thinking_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    tokens = tokenizer.encode([*prompts.question("What is it?", images=1), *prompts.answer_start(thinking=True)])
    assert [-200 if t == Placeholder.IMAGE else t for t in tokens] == golden["prompts"]["thinking"]["raw_input_ids"]


def test_reasoning_is_split_off_and_not_in_the_conversation(tokenizer: Tokenizer) -> None:
    thoughts, answer = tokenizer.encode(["\nHm.\n"]), tokenizer.encode(["\n\nA cat."])
    written = [Control.THINK, *thoughts, Control.END_THINK, *answer, Control.TURN_END]
    assert split_thinking(written) == (thoughts, answer)
    assert split_thinking([Control.THINK, *thoughts]) == (thoughts, [])
    assert split_thinking([*answer, Control.END_OF_TEXT]) == ([], answer)
    # Without thinking, the generated text is unchanged.
    assert with_answer(answer, written, False, tokenizer) == (*answer, *written, *tokenizer.encode(["\n"]))
    start = tokenizer.encode([*prompts.question("?"), *prompts.answer_start(thinking=True)])
    plain = tokenizer.encode([*prompts.question("?"), *prompts.answer_start()])
    spoken = with_answer(plain, tokenizer.encode(["A cat."]), False, tokenizer)
    assert with_answer(start, written, True, tokenizer) == spoken
    assert with_answer(start, [Control.THINK, *thoughts], True, tokenizer) == with_answer(plain, [], False, tokenizer)


def test_200_decoded_tokens_equal_a_full_recomputation(text_model: Multimodal, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(
        [*prompts.question("Write a haiku about \u96ea and émigrés \U0001f408."), *prompts.answer_start()]
    )
    written = generate(text_model, tokens, 200)
    assert len(set(written)) > 20  # a loop of one word would not test much
    again: list[int] = []
    for _ in range(200):
        embeds = text_model.embed([*tokens, *again], CPU, torch.float32)
        state = text_model.llm.condition(embeds[None])[0, -1, : embeds.shape[1]]
        again.append(int((text_model.llm.model["embed_tokens"].weight @ state).argmax()))
    assert written == again


def test_captured_decode_step_computes_the_same(text_model: Multimodal, case: tuple[list[Token], Any]) -> None:
    tokens, expected = case
    plain, _ = prefill(text_model, tokens, 24, CPU, torch.float32)
    static, _ = prefill(text_model, tokens, 24, CPU, torch.float32)
    for number in expected["output_ids"][:-1]:
        token = torch.tensor([number])
        position = torch.tensor([static.length])
        close(text_model.llm.decode_at(token, position, static), text_model.llm.decode(token, plain), 1e-5)
        static.length += 1
    close(static.keys, plain.keys, 1e-5)


def test_first_token_does_not_wait_for_the_capture(
    text_model: Multimodal, case: tuple[list[Token], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    captures: list[Any] = []
    monkeypatch.setattr(decoding, "capture", lambda *args: captures.append(args))
    tokens, expected = case
    cache, logits = prefill(text_model, tokens, 20, CPU, torch.float32)
    written = decode(text_model, cache, logits, GREEDY, 20)
    for i, number in enumerate(expected["output_ids"][:3]):
        assert next(written) == number
        assert len(captures) == min(i, 1)
    monkeypatch.setattr(text_model, "cuda_graphs", False)
    cache, logits = prefill(text_model, tokens, 20, CPU, torch.float32)
    assert [*decode(text_model, cache, logits, GREEDY, 4)] == expected["output_ids"][:4]
    assert len(captures) == 1


def test_prefill_in_chunks_and_from_a_past_cache(
    text_model: Multimodal, case: tuple[list[Token], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, expected = case
    whole, logits = prefill(text_model, tokens, 1, CPU, torch.float32)
    length = sequence_length(tokens)
    monkeypatch.setattr(language, "PREFILL_CHUNK", 10)
    pieces, again = prefill(text_model, tokens, 1, CPU, torch.float32)
    close(again, logits, 1e-5)
    close(pieces.keys[:, :, :length], whole.keys[:, :, :length], 1e-5)
    most = sequence_length(tokens[:-6])
    past = [whole.copy(0, 3), whole.copy(3, most)]
    assert len(tokens_after(tokens, most)) == 6
    assert generate(text_model, tokens, 24, past=past) == expected["output_ids"]


def test_visual_tokenizer_in_chunks(
    text_model: Multimodal, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ovis_core.networks import vision

    video = understanding_input([picture(112, 84, k) for k in range(3)], Placeholder.VIDEO)
    whole = text_model.encode_image(video, CPU, torch.float32)
    monkeypatch.setattr(vision, "HEAD_CHUNK", 7)
    close(text_model.encode_image(video, CPU, torch.float32), whole, 1e-6)
    close(whole[[0, -1]], weights["vte.weight"][[-3, -3]])
