"""Turns of a conversation as token ids and pictures, and what was computed for them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from . import prompts
from .multimodal import Token
from .networks.cache import KeysAndValues
from .pixels import VisualInput
from .prompts import Control
from .tokenizer import Tokenizer


class Computed(NamedTuple):
    """Keys and values of a conversation's first positions, turn by turn, in RAM.

    made_by  what they depend on besides the tokens: the model and its patches
    """

    made_by: Hashable
    turns: tuple[KeysAndValues, ...] = ()

    @property
    def length(self) -> int:
        """Positions."""
        return sum(keys.shape[2] for keys, _ in self.turns)


class Conversation(NamedTuple):
    """Whole turns of the user and of the model.

    A tuple, because ComfyUI counts the memory of an output by looking for tensors in lists and tuples; older versions
    ask `get_ram_usage`. Turns that several conversations share are counted in each of them.

    computed  for some or all turns; None if nothing was kept
    patches   of the pictures among `tokens`
    """

    tokens: tuple[Token, ...] = ()
    computed: Computed | None = None
    patches: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, tokens: Sequence[Token], computed: Computed | None = None) -> Conversation:
        """A conversation that shows ComfyUI all of its tensors."""
        pictures = (token.patches for token in tokens if isinstance(token, VisualInput))
        return cls(tuple(tokens), computed, tuple(pictures))

    def get_ram_usage(self) -> int:
        """Bytes of its tensors."""
        turns = self.computed.turns if self.computed else ()
        return sum(tensor.nbytes for tensor in (*self.patches, *(half for turn in turns for half in turn)))


def thoughts_and_answer(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """What the model wrote, split into the inside of its think block and what follows the block."""
    words = without_end(ids)
    if Control.THINK not in words and Control.END_THINK not in words:
        return [], words
    start = words.index(Control.THINK) + 1 if Control.THINK in words else 0
    if Control.END_THINK not in words:
        return words[start:], []
    end = words.index(Control.END_THINK)
    return words[start:end], words[end + 1 :]


def closed(tokens: Sequence[Token], ids: Sequence[int], thinking: bool, tokenizer: Tokenizer) -> tuple[Token, ...]:
    """A prompt and what the model wrote as whole turns, its thoughts left out as in the model's own template."""
    end = tokenizer.encode(prompts.answer_end())
    if not thinking:
        return (*tokens, *without_end(ids), *end)
    answer = thoughts_and_answer(ids)[1] or tokenizer.encode([prompts.AFTER_THOUGHTS])
    return (*tokens, *tokenizer.encode(prompts.NO_THOUGHTS), *answer, *end)


def without_end(ids: Sequence[int]) -> list[int]:
    """What the model wrote, without its end token."""
    return [i for i in ids if i not in prompts.ENDS]
