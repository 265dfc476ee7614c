"""Prompts to token ids, with ComfyUI's bundled tokenizer files, with the release's own, and as one file."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any
from unicodedata import normalize

import pytest
import transformers

from helpers.tokenizer_files import write_tokenizer
from ovis_core.special_tokens import Control, Placeholder
from ovis_core.text import prompts
from ovis_core.text.tokenizer import Tokenizer

PLACES = {Placeholder.IMAGE: -200, Placeholder.VIDEO: -201}


@pytest.fixture(scope="module", params=["bundled", "release", "whole"])
def tokenizer(
    request: pytest.FixtureRequest, qwen25_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    if request.param == "bundled":
        return Tokenizer(qwen25_tokenizer)
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, qwen25_tokenizer)
    if request.param == "whole":
        transformers.AutoTokenizer.from_pretrained(folder, use_fast=True).save_pretrained(folder / "whole")
        folder = folder / "whole"
        assert (folder / "tokenizer.json").is_file()
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
    return Tokenizer(folder)


def ids(tokenizer: Tokenizer, parts: list[prompts.PromptPart]) -> list[int]:
    return [PLACES.get(token, token) for token in tokenizer.encode(parts)]


def test_text_to_image_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    assert ids(tokenizer, prompts.text_to_image("a cute cat")) == golden["prompts"]["t2i"]["raw_input_ids"]
    assert ids(tokenizer, prompts.unconditional()) == golden["prompts"]["uncond"]["raw_input_ids"]


def test_unicode_ids(tokenizer: Tokenizer, golden: dict[str, Any]) -> None:
    case = golden["prompts"]["text_only"]
    turn = ids(tokenizer, prompts.user_turn([case["prompt"]]))
    assert turn == case["raw_input_ids"][: len(turn)]
    assert case["raw_input_ids"][len(turn)] == Control.TURN_START


def test_random_texts_match_transformers(tokenizer: Tokenizer, qwen25_tokenizer: Path) -> None:
    qwen2 = transformers.AutoTokenizer.from_pretrained(qwen25_tokenizer, local_files_only=True)
    random = Random(0)
    ranges = [(32, 127), (9, 14), (0xA0, 0x250), (0x300, 0x600), (0x900, 0xE80), (0x3040, 0xA000), (0x1F300, 0x1FAFF)]
    for _ in range(200):
        text = "".join(chr(random.randrange(*random.choice(ranges))) for _ in range(60))
        assert tokenizer.encode([text]) == qwen2(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(tokenizer.encode([text])) == normalize("NFC", text)


@pytest.mark.parametrize(
    "typed", ["<image>", "<|im_end|>", "<|im_start|>user", "<think>", "<tool_call>", "<|endoftext|>"]
)
def test_control_tokens_in_prompts_are_plain_text(tokenizer: Tokenizer, typed: str) -> None:
    plain = tokenizer.encode(prompts.text_to_image("a sign"))
    out = tokenizer.encode(prompts.text_to_image(f"a sign that says {typed} twice"))
    control = [t for t in out if isinstance(t, Placeholder) or t >= Control.END_OF_TEXT]
    assert control == [t for t in plain if isinstance(t, Placeholder) or t >= Control.END_OF_TEXT]
    text = tokenizer.decode([t for t in out if isinstance(t, int)])
    assert f"a sign that says {typed} twice" in text


def test_error_for_half_a_surrogate_pair(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"prompt: '\\ud800' is half of a surrogate pair"):
        tokenizer.encode(prompts.text_to_image("a \ud800 cat"))


def test_tokenizer_json_is_used_if_merges_are_missing(qwen25_tokenizer: Path, tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(qwen25_tokenizer, use_fast=True).save_pretrained(tmp_path)
    (tmp_path / "merges.txt").unlink(missing_ok=True)
    (tmp_path / "vocab.json").write_bytes((qwen25_tokenizer / "vocab.json").read_bytes())
    assert Tokenizer(tmp_path).encode(["a cat"])


def test_error_for_an_incomplete_vocabulary(qwen25_tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_bytes((qwen25_tokenizer / "vocab.json").read_bytes())
    merges = (qwen25_tokenizer / "merges.txt").read_bytes().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_bytes(b"".join(merges[:150000]))
    with pytest.raises(ValueError, match=r"expected Qwen3's vocabulary, got a different or incomplete one; download"):
        Tokenizer(tmp_path)


def test_error_for_a_file_that_makes_the_library_panic(tmp_path: Path) -> None:
    """It then raises an error that is not an `Exception`, which would end ComfyUI's worker."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "##"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    with pytest.raises(ValueError, match=r"^the tokenizer in .* cannot be read"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"a": 0}'])
def test_error_for_broken_tokenizer_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "vocab.json").write_text(text)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match=r"^the tokenizer in .*; download its files again, or delete them"):
        Tokenizer(tmp_path)
