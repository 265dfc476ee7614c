"""Tokens that are not text: Qwen3's control tokens, and placeholders for visual embeddings."""

from __future__ import annotations

from enum import Enum, IntEnum


class Control(IntEnum):
    """Qwen3's control tokens and their ids."""

    END_OF_TEXT = 151643
    TURN_START = 151644
    TURN_END = 151645
    THINK = 151667
    END_THINK = 151668


class Placeholder(Enum):
    """Position of visual embeddings in a prompt: those of an image, or of a video's frames."""

    IMAGE = "image"
    VIDEO = "video"
