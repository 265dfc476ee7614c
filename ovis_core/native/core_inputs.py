"""Inputs that reach the CLIP from ComfyUI's own nodes and from nodes for other models: their checks and their meaning.

Core's Generate Text passes the parts of a question. Nodes that encode prompts may pass arguments for other models, and
may put a prompt's tokens into a section for each of several text encoders.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

from torch import Tensor

from ..pixels import SampledFrames, VisualInput, need_images

SECTION = "ovis_u1"  # key of our tokens in the result of CLIP.tokenize
MAX_FRAMES = 8  # of a video, for nodes without that input
# Options of `tokenize` that only nodes for text generation pass.
QUESTION_OPTIONS = {"image", "video", "audio", "thinking", "skip_template", "min_length", "system_prompt"}
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


@dataclass(frozen=True)
class CoreQuestion:
    """The inputs of core's Generate Text, checked.

    images         each (height, width, channels), 0 to 1
    frames         of a video, likewise, at most `MAX_FRAMES`; there are either images or frames, or neither
    skip_template  the model continues the bare text
    """

    images: Sequence[Tensor]
    frames: SampledFrames
    thinking: bool
    skip_template: bool
    min_length: int | None
    system_prompt: str

    def check_length(self, length: int) -> None:
        """Raises ValueError if a prompt of this length would have to be padded."""
        if self.min_length is not None and length < self.min_length:
            raise ValueError(
                f"min_length: expected at most {length} (the prompt's length, because Ovis-U1 cannot pad it), got "
                f"{self.min_length}; set min_length to 1."
            )


def core_question(
    image: Tensor | None = None,
    images: Sequence[Tensor] | Mapping[str, Tensor] | Tensor | None = None,
    video: Tensor | None = None,
    audio: Any = None,
    thinking: bool = False,
    skip_template: bool = False,
    min_length: int | None = None,
    system_prompt: str | None = None,
    **unknown: Any,
) -> CoreQuestion:
    """Checks the inputs of core's Generate Text. Raises ValueError for those that Ovis-U1 does not have or cannot use.

    image   a batch (n, height, width, channels); `video`, likewise: its frames
    images  such a batch, or several
    """
    refuse_unknown(unknown)
    if not is_empty(audio):
        raise ValueError("audio: Ovis-U1 does not support audio; disconnect audio.")
    batches = images.values() if isinstance(images, Mapping) else [images] if _is_batch(images) else images or ()
    all_images = [*_images("image", image), *(one for batch in batches for one in _images("images", batch))]
    frames = SampledFrames(_images("video", video), MAX_FRAMES)
    system_prompt = system_prompt or ""
    if not isinstance(system_prompt, str):
        raise ValueError(
            f"system_prompt: expected text, got {type(system_prompt).__name__}; connect a STRING, or clear "
            "system_prompt."
        )
    if all_images and len(frames):
        raise ValueError("video: expected either images or a video, got both; disconnect one of them.")
    if skip_template and system_prompt.strip():
        raise ValueError(
            "system_prompt: expected no text, because use_default_template is off; turn on use_default_template, "
            "or clear system_prompt."
        )
    return CoreQuestion(all_images, frames, thinking, skip_template, min_length, system_prompt)


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _images(name: str, batch: Tensor | None) -> list[Tensor]:
    """The images of a batch (n, height, width, channels); none without a batch. Raises as `need_images` does."""
    if batch is None:
        return []
    need_images(name, batch)
    return list(batch)


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
            off = f"; set it to 0 (it is {value})" if number else "; turn it off" if value is True else "; clear it"
            raise ValueError(f"{name}: Ovis-U1 does not support this input{off}, or remove the node that sets it.")


def refuse_more_than_text(options: dict[str, Any]) -> None:
    """Raises ValueError if a node that encodes prompts passes an argument that would be ignored."""
    if not is_empty(options.pop("images", None)):
        raise ValueError("images: Ovis-U1 does not support images from this node; use Ovis-U1 Edit Encode.")
    for name, value in options.items():
        if not is_empty(value) and (name not in OTHER_MODELS_OPTIONS or value == TEXT_ALONE):
            raise ValueError(
                f"clip: this node is made for another model and sets {name}, which Ovis-U1 does not have; "
                "use Ovis-U1 Text Encode, or Ovis-U1 Edit Encode for images."
            )


def text_ids(sequence: Iterable[tuple]) -> tuple[int, ...]:
    """The ids of a sequence of (id or `VisualInput`, weight, ...), without its visual inputs."""
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
    found = {tuple(map(text_ids, section)): section for section in sections}
    if len(found) > 1:  # ignore inputs that were left empty
        empty = {tokens.without_text if isinstance(tokens, Tokens) else None}
        found = {ids: section for ids, section in found.items() if set(ids) != empty}
    if len(found) > 1:
        raise ValueError(
            "clip: expected the same prompt for every text encoder, because Ovis-U1 has only one, got different "
            "prompts; write the same prompt in each input of this node, or use Ovis-U1 Text Encode."
        )
    return next(iter(found.values()))
