"""Pictures and prompts through the visual tokenizer and the language model, in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close
from helpers.pictures import picture
from ovis_core.multimodal import Multimodal, sequence_length
from ovis_core.pixels import VisualInput, blank_input, understanding_input
from ovis_core.special_tokens import Placeholder
from ovis_core.text import prompts
from ovis_core.text.tokenizer import Tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def seen() -> VisualInput:
    return understanding_input([picture(256, 192)])


def test_pixels(seen: VisualInput, golden: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    assert [list(seen.grid)] == golden["understand_grid_thw"]
    assert list(seen.patches.shape) == golden["pixels_understand_shape"]
    close(seen.patches[:8], tensors["pixels/understand/patches_head"])
    close(seen.patches[-8:], tensors["pixels/understand/patches_tail"])
    assert float(seen.patches.double().sum()) == pytest.approx(golden["pixels_understand_sum"], rel=1e-6)


def test_features(text_model: Multimodal, seen: VisualInput, tensors: dict[str, Tensor]) -> None:
    features = text_model.visual_tokenizer.backbone(seen.patches, *seen.grid[1:])
    close(features[:4], tensors["visual/understand/features_head"])
    close(features[-4:], tensors["visual/understand/features_tail"])


def test_visual_words(text_model: Multimodal, seen: VisualInput, tensors: dict[str, Tensor]) -> None:
    words = text_model.visual_tokenizer.words(text_model.visual_tokenizer.backbone(seen.patches, *seen.grid[1:])[:4])
    expected = tensors["visual/understand/tokens_head"]
    close(words, expected[:, :-4])
    assert expected[:, -4:].count_nonzero() == 0


def test_embeddings(
    text_model: Multimodal, seen: VisualInput, tensors: dict[str, Tensor], weights: dict[str, Tensor]
) -> None:
    embeds = text_model.encode_image(seen, CPU, torch.float32)
    close(embeds[1:-1], tensors["visual/understand/embeds"])
    close(embeds[[0, -1]], weights["vte.weight"][[-5, -4]])


def test_conditions(
    text_model: Multimodal, qwen25_tokenizer: Path, golden: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    blank = blank_input(96, 128)
    assert [list(blank.grid)] == golden["cond_t2i_grid_thw"]
    tokenizer = Tokenizer(qwen25_tokenizer)
    for name, parts in (("t2i", prompts.text_to_image("a cute cat")), ("uncond", prompts.unconditional())):
        sequence = [blank if isinstance(t, Placeholder) else t for t in tokenizer.encode(parts)]
        condition = text_model.condition(sequence, CPU, torch.float32)
        close(condition, tensors[f"cond/{name}"])
        assert condition.shape[1] == sequence_length(sequence)


def test_image_tokens_are_at_the_positions_of_the_release(qwen25_tokenizer: Path, golden: dict[str, Any]) -> None:
    tokens = Tokenizer(qwen25_tokenizer).encode(prompts.text_to_image("a cute cat"))
    flat = [i for t in tokens for i in ((-301, -300, -302) if isinstance(t, Placeholder) else (t,))]
    assert flat == golden["cond_t2i_ids"]


def test_error_for_too_many_tokens_gives_the_count(text_model: Multimodal) -> None:
    limit = text_model.config.language.max_position_embeddings
    with pytest.raises(ValueError, match=f"at most {limit} tokens, got {limit + 1} .*; shorten the text"):
        text_model.condition([0] * (limit + 1), CPU, torch.float32)
