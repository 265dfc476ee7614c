"""Prompts to token ids, with ComfyUI's bundled tokenizer files and with the release's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import make_checkpoint
from ovis_core import prompts
from ovis_core.tokenizer import Tokenizer

PLACES = {prompts.Picture.IMAGE: -200, prompts.Picture.VIDEO: -201}


@pytest.fixture(scope="module", params=["bundled", "release"])
def tokenizer(
    request: pytest.FixtureRequest, qwen25_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "bundled":
        return Tokenizer(qwen25_tokenizer)
    folder = tmp_path_factory.mktemp("tokenizer")
    make_checkpoint.write_tokenizer(folder, qwen25_tokenizer)
    return Tokenizer(folder)


def ids(tokenizer: Tokenizer, parts: list[prompts.Part]) -> list[int]:
    return [PLACES.get(token, token) for token in tokenizer.encode(parts)]


def test_text_to_image_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    assert ids(tokenizer, prompts.text_to_image("a cute cat")) == golden["prompts"]["t2i"]["raw_input_ids"]
    assert ids(tokenizer, prompts.unconditional()) == golden["prompts"]["uncond"]["raw_input_ids"]


def test_unicode_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    case = golden["prompts"]["text_only"]
    turn = ids(tokenizer, prompts.user_turn([case["prompt"]]))
    assert turn == case["raw_input_ids"][: len(turn)]
    assert case["raw_input_ids"][len(turn)] == prompts.Control.TURN_START


@pytest.mark.parametrize(
    "typed", ["<image>", "<|im_end|>", "<|im_start|>user", "<think>", "<tool_call>", "<|endoftext|>"]
)
def test_what_a_user_types_is_literal(tokenizer: Tokenizer, typed: str) -> None:
    plain = tokenizer.encode(prompts.text_to_image("a sign"))
    out = tokenizer.encode(prompts.text_to_image(f"a sign that says {typed} twice"))
    control = [t for t in out if isinstance(t, prompts.Picture) or t >= prompts.Control.END_OF_TEXT]
    assert control == [t for t in plain if isinstance(t, prompts.Picture) or t >= prompts.Control.END_OF_TEXT]
    text = tokenizer.decode([t for t in out if isinstance(t, int)])
    assert f"a sign that says {typed} twice" in text


def test_what_is_no_character_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"prompt: '\\ud800' is no character"):
        tokenizer.encode(prompts.text_to_image("a \ud800 cat"))


@pytest.mark.parametrize("text", ["{}", '{"a": 0}'])
def test_broken_tokenizer_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "vocab.json").write_text(text)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"tokenizer .*(Download|delete) them"):
        Tokenizer(tmp_path)
