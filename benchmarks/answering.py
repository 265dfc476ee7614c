"""Answers about images: by our model, and by transformers' `generate` on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from clock import Clock, now
from ovis_core.pixels import to_tensor
from ovis_core.text.decoding import GREEDY, decode
from ovis_core.weights.config import LanguageConfig
from ovis_core.weights.layout import LANGUAGE

SIZE = 768  # pixels per side of each image; 784 after the model's own resize
QUESTION = "Describe each image."


class Answer(NamedTuple):
    """The generated ids and the time.

    first  seconds to the first token, including the visual tokenizer
    each   seconds per token after it
    """

    first: float
    each: float
    tokens: list[int]


def photos(count: int) -> list[Image.Image]:
    """Images of noise."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def question(clip: Any, images: int) -> list[Any]:
    """Tokens of a prompt about `images` images."""
    return clip.tokenizer.question(QUESTION, [to_tensor(photo) for photo in photos(images)])


def answer(clip: Any, images: int, max_new_tokens: int) -> Answer:
    """Our answer of exactly `max_new_tokens` tokens."""
    model, tokens = clip.cond_stage_model, question(clip, images)
    start = now()
    cache, logits = model.prefill(tokens, max_new_tokens)
    written = decode(model, cache, logits, GREEDY, max_new_tokens, stop_at_end=False)
    ids = [next(written)]
    first = now()
    ids.extend(written)
    return Answer(first - start, (now() - first) / (max_new_tokens - 1), ids)


class Transformers:
    """transformers' own Qwen3 on the same weights; pictures go through our visual tokenizer."""

    def __init__(self, config: LanguageConfig, weights: dict[str, Tensor], device: torch.device) -> None:
        """weights: a release's tensors."""
        qwen3 = Qwen3Config(**vars(config), tie_word_embeddings=True, attn_implementation="sdpa")
        with torch.device("meta"):
            self.model = Qwen3ForCausalLM(qwen3)
        own = {key.removeprefix(LANGUAGE): value.to(device) for key, value in weights.items() if LANGUAGE in key}
        own["lm_head.weight"] = own["model.embed_tokens.weight"]
        self.model.load_state_dict(own, assign=True)
        self.model.model.rotary_emb = Qwen3RotaryEmbedding(qwen3).to(device)
        self.model.eval().requires_grad_(False)

    def answer(self, clip: Any, images: int, max_new_tokens: int) -> Answer:
        """As `answer`."""
        model, tokens = clip.cond_stage_model, question(clip, images)
        start = now()
        embeds = model.embed(tokens, model.run_device, model.decode_dtype)[None]
        embedding = now() - start

        def generate(new: int, clock: Clock) -> Tensor:
            return self.model.generate(inputs_embeds=embeds, streamer=clock, **greedy(new))

        return time_generate(generate, embedding, max_new_tokens)


def greedy(max_new_tokens: int) -> dict[str, Any]:
    """Arguments with which `generate` makes exactly `max_new_tokens` tokens."""
    exactly = {"max_new_tokens": max_new_tokens, "min_new_tokens": max_new_tokens}
    return {**exactly, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def time_generate(generate: Callable[[int, Clock], Tensor], embedding: float, max_new_tokens: int) -> Answer:
    """As `answer`; `generate` takes the number of new tokens and a streamer; `embedding`: seconds before it."""
    clock, start = Clock(), now()
    ids = generate(max_new_tokens, clock)[0].tolist()
    _, first, *_, last = clock.times
    return Answer(embedding + first - start, (last - first) / (max_new_tokens - 1), ids)
