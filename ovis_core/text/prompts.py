"""The model's prompt templates, as sequences of literal text, control tokens and placeholders for images and videos.

Only the templates contain control tokens and placeholders. A user's text is always literal, so `<image>` or
`<|im_end|>` in it are plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..special_tokens import Control, Placeholder

PromptPart = str | Control | Placeholder

DESCRIBE = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, and spatial relationships of "
    "the objects:"
)
UNCONDITIONAL = "Generate an image."

# Texts of users, in which a word in braces is replaced.
PROMPT_SLOT, ANSWER_SLOT = "{prompt}", "{answer}"
FITS = 'Does this image fit the description "{prompt}"? Answer yes or no.'
WHAT_TO_CHANGE = (
    'This image should fit the description "{prompt}", but something is missing or wrong. Which change makes it fit? '
    "Answer with one short instruction to an image editor."
)

END_TOKENS = (Control.TURN_END, Control.END_OF_TEXT)  # either ends an answer
EMPTY_THINKING: tuple[PromptPart, ...] = (Control.THINK, "\n\n", Control.END_THINK)
AFTER_THINKING = "\n\n"


def fill(template: str, **values: str) -> str:
    """The template with each {name} replaced by the value of that name; braces in the values stay as they are."""
    names = "|".join(values)
    return re.sub(rf"\{{({names})\}}", lambda found: values[found[1]], template)


def user_turn(parts: Sequence[PromptPart]) -> list[PromptPart]:
    """One turn of the user: `<|im_start|>user\\n...<|im_end|>\\n`."""
    return [Control.TURN_START, "user\n", *parts, Control.TURN_END, "\n"]


def text_to_image(prompt: str) -> list[PromptPart]:
    """The condition for text to image; the image is a blank of the target size."""
    return user_turn([Placeholder.IMAGE, f"\n{DESCRIBE}{prompt}"])


def about_image(text: str, images: int = 1) -> list[PromptPart]:
    """Images and a text about them: an edit's instruction, stripped. Several are numbered as in a question."""
    return question(text.strip(), images)


def unconditional(images: int = 1) -> list[PromptPart]:
    """The condition without the text: with a blank image, or an edit's images for the image-only branch."""
    return about_image(UNCONDITIONAL, images)


def question(text: str, images: int = 0, video: bool = False) -> list[PromptPart]:
    """The user's turn: a question alone, about this many images, or about one video."""
    if video or images == 1:
        return user_turn([Placeholder.VIDEO if video else Placeholder.IMAGE, f"\n{text}"])
    numbered = [part for i in range(images) for part in (f"Image {i + 1}: ", Placeholder.IMAGE, "\n")]
    return user_turn([*numbered, text])


def system_turn(text: str) -> list[PromptPart]:
    """The system prompt, before the user's turn; empty for an empty text. The model was trained without one."""
    return [Control.TURN_START, f"system\n{text}", Control.TURN_END, "\n"] if text.strip() else []


def answer_start(thinking: bool = False) -> list[PromptPart]:
    """The start of the model's turn, with an empty think block; with `thinking` the model opens the block itself."""
    start: list[PromptPart] = [Control.TURN_START, "assistant\n"]
    return start if thinking else [*start, *EMPTY_THINKING, AFTER_THINKING]


def answer_end() -> list[PromptPart]:
    """The end of the model's turn in a conversation that continues."""
    return [Control.TURN_END, "\n"]
