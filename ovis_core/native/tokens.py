"""Prompts to tokens, in the form of ComfyUI's tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.text_encoders
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ..multimodal import Token, check_positions, sequence_length
from ..pixels import Frames, SampledFrames, VisualInput, blank_input, to_pil, understanding_input
from ..sizes import FACTOR, understanding_size
from ..special_tokens import Control, Placeholder
from ..text import prompts
from ..text.tokenizer import Tokenizer
from .core_inputs import (
    MAX_FRAMES,
    QUESTION_OPTIONS,
    SECTION,
    CoreQuestion,
    Tokens,
    core_question,
    refuse_more_than_text,
    text_ids,
)
from .page.input_warnings import warn_of_image_size

DEFAULT_SIZE = 1024  # of the blank image, for nodes such as CLIPTextEncode, which have no size
BUNDLED_TOKENIZER = Path(comfy.text_encoders.__path__[0]) / "qwen25_tokenizer"
# Tags that are kept in decoded text, so that callers can split off the think block.
THINK_TAGS = {Control.THINK: "<think>", Control.END_THINK: "</think>"}
SPECIAL_TOKENS = {
    Control.END_OF_TEXT: "<|endoftext|>",
    Control.TURN_START: "<|im_start|>",
    Control.TURN_END: "<|im_end|>",
}


class OvisTokenizer:
    """Prompt -> tokens, in the form of ComfyUI's tokenizers."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        data = tokenizer_data or {}
        self.positions: int = data["positions"]  # of the language model
        self.tokenizer = Tokenizer(data.get("source") or BUNDLED_TOKENIZER)
        self.metadata: dict[str, Tensor] = data.get("metadata", {})
        self.side: int | None = None  # as `Checkpoint.side`

    def tokenize_with_weights(
        self,
        text: str,
        return_word_ids: bool = False,
        width: int = DEFAULT_SIZE,
        height: int = DEFAULT_SIZE,
        **kwargs: Any,
    ) -> dict[str, list[list[tuple]]]:
        """Tokens of the text-to-image condition for an image of width x height pixels.

        An empty `text` is the model's own prompt without text. A token is a pair of (id or `VisualInput`, weight).
        Weights are always 1: the model reads sentences, and parentheses are literal.

        With an option of core's Generate Text the text is a question: `image` is a batch of images, `images` a list of
        batches, `video` a batch of frames, `system_prompt` the text of a turn before the user's, `thinking` lets the
        model reason first, and with `skip_template` the model continues the bare text.

        Raises ValueError for any other option that is not empty.
        """
        if QUESTION_OPTIONS & kwargs.keys():
            return _numbered(
                {SECTION: [[(t, 1.0) for t in self._core_question(text, core_question(**kwargs))]]}, return_word_ids
            )
        refuse_more_than_text(kwargs)
        parts = prompts.text_to_image(text) if text.strip() else prompts.unconditional()
        tokens = Tokens(_numbered(self.tokenize_parts(parts, [[blank_input(height, width)]]), return_word_ids))
        tokens.without_text = self.without_text
        return tokens

    @cached_property
    def without_text(self) -> tuple[int, ...]:
        """Ids of the model's own prompt without text."""
        tokens = self.fill_placeholders(prompts.unconditional(), [blank_input(FACTOR, FACTOR)])
        return text_ids((token,) for token in tokens)

    def tokenize_parts(
        self, parts: Sequence[prompts.PromptPart], batch: Sequence[Sequence[VisualInput]]
    ) -> dict[str, list[list[tuple]]]:
        """Tokens of a prompt: one sequence for each item of the batch, with this item's visual inputs."""
        return {SECTION: [[(token, 1.0) for token in self.fill_placeholders(parts, inputs)] for inputs in batch]}

    def fill_placeholders(self, parts: Sequence[prompts.PromptPart], inputs: Sequence[VisualInput]) -> list[Token]:
        """Tokens of a prompt with one placeholder for each visual input."""
        left = iter(inputs)
        return [next(left) if isinstance(t, Placeholder) else t for t in self.tokenizer.encode(parts)]

    def question(
        self,
        text: str,
        images: Sequence[Tensor] = (),
        frames: Frames = (),
        max_frames: int = MAX_FRAMES,
        thinking: bool = False,
        system_prompt: str = "",
    ) -> list[Token]:
        """Tokens of the user's turn and of the start of the model's.

        images         each (height, width, channels), 0 to 1
        frames         of one video, likewise; sampled evenly down to `max_frames`, and only these are indexed
        system_prompt  text of a turn before the user's; empty: no such turn
        """
        asked = prompts.question(text, len(images), bool(len(frames)))
        parts = [*prompts.system_turn(system_prompt), *asked, *prompts.answer_start(thinking)]
        frames = SampledFrames(frames, max_frames)
        longer = "system_prompt" if len(system_prompt) > len(text) else "prompt"
        self._check_length(parts, images, frames, longer)
        return self.fill_placeholders(parts, self._visual_inputs(images, frames))

    def _check_length(
        self, parts: Sequence[prompts.PromptPart], images: Sequence[Tensor], frames: SampledFrames, name: str = "prompt"
    ) -> None:
        """Raises ValueError for a prompt that is too long, before its images are cut into patches, which is slow."""

        def positions(image: Tensor) -> int:
            height, width = understanding_size(*image.shape[:2])
            return height // FACTOR * (width // FACTOR)

        visual = sum(positions(image) + 2 for image in images)
        if len(frames):
            visual += positions(frames[0]) * len(frames) + 2
        words = sum(not isinstance(token, Placeholder) for token in self.tokenizer.encode(parts))
        check_positions(words, visual, self.positions, name)
        for image in (*images, *([frames[0]] if len(frames) else [])):
            warn_of_image_size(self.side, *image.shape[:2])

    def _visual_inputs(self, images: Sequence[Tensor], frames: SampledFrames) -> list[VisualInput]:
        inputs = []
        for image in images:
            throw_exception_if_processing_interrupted()
            inputs.append(understanding_input([to_pil(image)]))
        if len(frames):
            inputs.append(understanding_input(map(to_pil, frames), Placeholder.VIDEO))
        return inputs

    def _core_question(self, text: str, asked: CoreQuestion) -> list[Token]:
        if asked.skip_template:
            self._check_length([text], asked.images, asked.frames)
            inputs = self._visual_inputs(asked.images, asked.frames)
            tokens = self.fill_placeholders([*(visual_input.kind for visual_input in inputs), text], inputs)
        else:
            tokens = self.question(text, asked.images, asked.frames, MAX_FRAMES, asked.thinking, asked.system_prompt)
        asked.check_length(sequence_length(tokens))
        return tokens

    def untokenize(self, pairs: list[tuple]) -> list[tuple]:
        """Pairs with the text of each token."""
        return [(p, "" if isinstance(p[0], VisualInput) else self.tokenizer.decode([p[0]])) for p in pairs]

    def decode(self, token_ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """Text of token ids. A think block keeps its tags, so that callers can split it off.

        skip_special_tokens  False: with the names of the tokens that begin and end turns
        """
        ids = token_ids.flatten().tolist() if isinstance(token_ids, Tensor) else [int(token) for token in token_ids]
        return self.tokenizer.decode(ids, THINK_TAGS if skip_special_tokens else THINK_TAGS | SPECIAL_TOKENS)

    def state_dict(self) -> dict[str, Tensor]:
        """Metadata stored as tensors, saved with the weights."""
        return self.metadata.copy()


def _numbered(tokens: dict[str, list[list[tuple]]], number: bool) -> dict[str, list[list[tuple]]]:
    """Adds the index of each token if `number` is true, like ComfyUI's tokenizers."""
    if not number:
        return tokens
    return {name: [[(*p, i) for i, p in enumerate(pairs)] for pairs in batch] for name, batch in tokens.items()}
