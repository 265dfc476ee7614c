"""Prompts to tokens, in the form of ComfyUI's tokenizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from numbers import Number
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
from .notice import warn_of_picture

SECTION = "ovis_u1"  # key of our tokens in the result of CLIP.tokenize
DEFAULT_SIZE = 1024  # of the blank picture, for nodes such as CLIPTextEncode, which have no size
BUNDLED_TOKENIZER = Path(comfy.text_encoders.__path__[0]) / "qwen25_tokenizer"
MAX_FRAMES = 8  # of a video, for nodes without that input
# Options of `tokenize` that only nodes for text generation pass.
QUESTION_OPTIONS = {"image", "video", "audio", "thinking", "skip_template", "min_length", "system_prompt"}
# Tags that are kept in decoded text, so that callers can split off the think block.
THINK_TAGS = {Control.THINK: "<think>", Control.END_THINK: "</think>"}
SPECIAL_TOKENS = {
    Control.END_OF_TEXT: "<|endoftext|>",
    Control.TURN_START: "<|im_start|>",
    Control.TURN_END: "<|im_end|>",
}
# Arguments of nodes for other models that can be ignored: another template for the text (but not `TEXT_ALONE`, which
# means no template), and the padding of T5.
OTHER_MODELS_OPTIONS = {"llama_template", "tokenizer_options"}
TEXT_ALONE = "{}"


class Tokens(dict[str, list[list[tuple]]]):
    """Tokens by the name of their text encoder; there is only one.

    Nodes for models with several text encoders find the prompt under each of these encoders' names.

    without_text  ids of the model's own prompt without text
    """

    without_text: tuple[int, ...] = ()

    def __missing__(self, name: str) -> list[list[tuple]]:
        return self[SECTION]

    def copy(self) -> Tokens:
        """A shallow copy, with `without_text`."""
        return self | {}

    def __or__(self, other: Any) -> Tokens:
        return self._with(super().__or__(other))

    def __ror__(self, other: Any) -> Tokens:
        return self._with(super().__ror__(other))

    def _with(self, sections: Any) -> Any:
        if sections is NotImplemented:
            return sections
        tokens = Tokens(sections)
        tokens.without_text = self.without_text
        return tokens


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
            return _numbered({SECTION: [[(t, 1.0) for t in self._core_question(text, **kwargs)]]}, return_word_ids)
        _refuse_more_than_text(kwargs)
        parts = prompts.text_to_image(text) if text.strip() else prompts.unconditional()
        tokens = Tokens(_numbered(self.tokenize_parts(parts, [[blank_input(height, width)]]), return_word_ids))
        tokens.without_text = self.without_text
        return tokens

    @cached_property
    def without_text(self) -> tuple[int, ...]:
        """Ids of the model's own prompt without text."""
        return _ids(
            [(token,) for token in self.fill_placeholders(prompts.unconditional(), [blank_input(FACTOR, FACTOR)])]
        )

    def tokenize_parts(
        self, parts: Sequence[prompts.PromptPart], batch: Sequence[Sequence[VisualInput]]
    ) -> dict[str, list[list[tuple]]]:
        """Tokens of a prompt: one sequence for each item of the batch, with this item's pictures."""
        return {SECTION: [[(token, 1.0) for token in self.fill_placeholders(parts, pictures)] for pictures in batch]}

    def fill_placeholders(self, parts: Sequence[prompts.PromptPart], pictures: Sequence[VisualInput]) -> list[Token]:
        """Tokens of a prompt with one placeholder for each picture."""
        left = iter(pictures)
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
        self._check_length(parts, images, frames)
        return self.fill_placeholders(parts, self._visual_inputs(images, frames))

    def _check_length(
        self, parts: Sequence[prompts.PromptPart], images: Sequence[Tensor], frames: SampledFrames
    ) -> None:
        """Raises ValueError for a prompt that is too long, before its pictures are cut into patches, which is slow."""

        def positions(picture: Tensor) -> int:
            height, width = understanding_size(*picture.shape[:2])
            return height // FACTOR * (width // FACTOR)

        pictures = sum(positions(image) + 2 for image in images)
        if len(frames):
            pictures += positions(frames[0]) * len(frames) + 2
        words = sum(not isinstance(token, Placeholder) for token in self.tokenizer.encode(parts))
        check_positions(words, pictures, self.positions)
        for picture in (*images, *([frames[0]] if len(frames) else [])):
            warn_of_picture(self.side, *picture.shape[:2])

    def _visual_inputs(self, images: Sequence[Tensor], frames: SampledFrames) -> list[VisualInput]:
        inputs = []
        for image in images:
            throw_exception_if_processing_interrupted()
            inputs.append(understanding_input([to_pil(image)]))
        if len(frames):
            inputs.append(understanding_input(map(to_pil, frames), Placeholder.VIDEO))
        return inputs

    def _core_question(
        self,
        text: str,
        image: Tensor | None = None,
        images: Sequence[Tensor] | Mapping[str, Tensor] | Tensor | None = None,
        video: Tensor | None = None,
        audio: Any = None,
        thinking: bool = False,
        skip_template: bool = False,
        min_length: int | None = None,
        system_prompt: str | None = None,
        **unknown: Any,
    ) -> list[Token]:
        refuse_unknown(unknown)
        if not is_empty(audio):
            raise ValueError("audio: Ovis-U1 does not support audio; disconnect audio.")
        batches = images.values() if isinstance(images, Mapping) else [images] if _is_batch(images) else images or ()
        seen = [*_images("image", image), *(one for batch in batches for one in _images("images", batch))]
        frames = SampledFrames(_images("video", video), MAX_FRAMES)
        system_prompt = system_prompt or ""
        if not isinstance(system_prompt, str):
            raise ValueError(
                f"system_prompt: expected text, got {type(system_prompt).__name__}; connect a STRING, or clear "
                "system_prompt."
            )
        if seen and len(frames):
            raise ValueError("video: expected either images or a video, got both; disconnect one of them.")
        if not skip_template:
            tokens = self.question(text, seen, frames, thinking=thinking, system_prompt=system_prompt)
        elif system_prompt.strip():
            raise ValueError(
                "system_prompt: expected no text, because use_default_template is off; turn on use_default_template, "
                "or clear system_prompt."
            )
        else:
            self._check_length([text], seen, frames)
            pictures = self._visual_inputs(seen, frames)
            tokens = self.fill_placeholders([*(picture.kind for picture in pictures), text], pictures)
        if min_length is not None and sequence_length(tokens) < min_length:
            raise ValueError(
                f"min_length: expected at most {sequence_length(tokens)}, the length of the prompt, which Ovis-U1 "
                f"cannot pad, got {min_length}; set min_length to 1."
            )
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


def is_empty(value: Any) -> bool:
    """Whether an option has no effect: None, False, 0, or an empty collection.

    Nodes always pass their numbers, and 0 turns an option off.
    """
    if hasattr(value, "__len__"):
        if getattr(value, "ndim", 1):
            return len(value) == 0
        value = value.item()  # of a tensor without dimensions
    return value is None or (isinstance(value, Number) and value == 0)


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raises ValueError for the first option that is not empty, instead of ignoring it silently."""
    for name, value in options.items():
        if not is_empty(value):
            number = isinstance(value, Number) and not isinstance(value, bool)
            off = f", got {value}; set it to 0" if number else "; turn it off" if value is True else "; clear it"
            raise ValueError(f"{name}: Ovis-U1 does not support this input{off}, or remove the node that sets it.")


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _images(name: str, batch: Tensor | None) -> list[Tensor]:
    """The images of a batch (n, height, width, channels)."""
    if batch is None:
        return []
    if not isinstance(batch, Tensor):
        raise ValueError(f"{name}: expected an IMAGE, got {type(batch).__name__}; connect Load Image or VAE Decode.")
    if batch.ndim != 4 or 0 in batch.shape:
        raise ValueError(
            f"{name}: expected an IMAGE of 4 dimensions, none of them 0, got shape {list(batch.shape)}; connect "
            "Load Image or VAE Decode."
        )
    return list(batch)


def _numbered(tokens: dict[str, list[list[tuple]]], number: bool) -> dict[str, list[list[tuple]]]:
    """Adds the index of each token if `number` is true, like ComfyUI's tokenizers."""
    if not number:
        return tokens
    return {name: [[(*p, i) for i, p in enumerate(pairs)] for pairs in batch] for name, batch in tokens.items()}


def _refuse_more_than_text(options: dict[str, Any]) -> None:
    """Raises ValueError if a node that encodes prompts passes an argument that would be ignored."""
    if not is_empty(options.pop("images", None)):
        raise ValueError("images: Ovis-U1 does not support images from this node; use Ovis-U1 Edit Encode.")
    for name, value in options.items():
        if not is_empty(value) and (name not in OTHER_MODELS_OPTIONS or value == TEXT_ALONE):
            raise ValueError(
                f"clip: this node is made for another model and sets {name}, which Ovis-U1 does not have; "
                "use Ovis-U1 Text Encode, or Ovis-U1 Edit Encode for images."
            )


def _ids(sequence: Sequence[tuple]) -> tuple[int, ...]:
    return tuple(token[0] for token in sequence if not isinstance(token[0], VisualInput))


def own_section(tokens: dict[str, list[list[tuple]]]) -> list[list[tuple]]:
    """The token sequences of an `OvisTokenizer`; if a node made several sections, those of their common prompt.

    Raises ValueError for another CLIP's tokens, and if a node gave different prompts to several text encoders.
    """
    if SECTION not in tokens:
        raise ValueError(
            "tokens: expected tokens of this CLIP, got those of another CLIP; connect the CLIP of Ovis-U1 Load Model."
        )
    if len(tokens) == 1:
        return tokens[SECTION]
    sections = [section for section in tokens.values() if isinstance(section, list) and section]
    found = {tuple(map(_ids, section)): section for section in sections}
    if len(found) > 1:  # ignore inputs that were left empty
        empty = {tokens.without_text if isinstance(tokens, Tokens) else None}
        found = {ids: section for ids, section in found.items() if set(ids) != empty}
    if len(found) > 1:
        raise ValueError(
            "clip: expected the same prompt for every text encoder, because Ovis-U1 has only one, got different "
            "prompts; write the same prompt in each input of this node, or use Ovis-U1 Text Encode."
        )
    return next(iter(found.values()))
