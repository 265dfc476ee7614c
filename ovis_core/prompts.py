"""The model's prompt templates, as sequences of literal text, control tokens and pictures.

Only the templates place control tokens and pictures. What a user writes is always literal text, so `<image>` or
`<|im_end|>` in it mean those characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, IntEnum


class Control(IntEnum):
    """Qwen3's control tokens and their ids."""

    END_OF_TEXT = 151643
    TURN_START = 151644
    TURN_END = 151645
    THINK = 151667
    END_THINK = 151668


class Picture(Enum):
    """Where a picture's visual embeddings go."""

    IMAGE = "image"
    VIDEO = "video"


Part = str | Control | Picture

DESCRIBE = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, and spatial relationships of "
    "the objects:"
)
UNCONDITIONAL = "Generate an image."

ENDS = (Control.TURN_END, Control.END_OF_TEXT)  # either ends an answer
NO_THOUGHTS: tuple[Part, ...] = (Control.THINK, "\n\n", Control.END_THINK)
AFTER_THOUGHTS = "\n\n"


def user_turn(parts: Sequence[Part]) -> list[Part]:
    """One turn of the user: `<|im_start|>user\\n...<|im_end|>\\n`."""
    return [Control.TURN_START, "user\n", *parts, Control.TURN_END, "\n"]


def text_to_image(prompt: str) -> list[Part]:
    """The condition for an image from text; the picture is a blank of the target size."""
    return user_turn([Picture.IMAGE, f"\n{DESCRIBE}{prompt}"])


def about_image(text: str) -> list[Part]:
    """A picture and what to do with it: an edit's instruction, stripped."""
    return user_turn([Picture.IMAGE, f"\n{text.strip()}"])


def unconditional() -> list[Part]:
    """The condition without the text: the picture is a blank, or an edit's source for the image-only branch."""
    return about_image(UNCONDITIONAL)


def question(text: str, images: int = 0, video: bool = False) -> list[Part]:
    """The user's turn: a question in words alone, about images, or about one video."""
    if video or images == 1:
        return user_turn([Picture.VIDEO if video else Picture.IMAGE, f"\n{text}"])
    pictures = [part for i in range(images) for part in (f"Image {i + 1}: ", Picture.IMAGE, "\n")]
    return user_turn([*pictures, text])


def system_turn(text: str) -> list[Part]:
    """A turn before the user's that says how to answer; none for an empty text. The model was trained without one."""
    return [Control.TURN_START, f"system\n{text}", Control.TURN_END, "\n"] if text.strip() else []


def answer_start(thinking: bool = False) -> list[Part]:
    """The start of the model's turn; with `thinking` it opens its think block itself."""
    start: list[Part] = [Control.TURN_START, "assistant\n"]
    return start if thinking else [*start, *NO_THOUGHTS, AFTER_THOUGHTS]


def answer_end() -> list[Part]:
    """What closes the model's turn in a conversation that goes on."""
    return [Control.TURN_END, "\n"]
