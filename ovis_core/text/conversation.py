"""Turns of a conversation as token ids and visual inputs, and the keys and values computed for them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from torch import Tensor

from ..multimodal import Token
from ..networks.kv_cache import KeysAndValues
from ..pixels import VisualInput
from ..special_tokens import Control
from . import prompts
from .tokenizer import Tokenizer


class PromptCache(NamedTuple):
    """Keys and values of a conversation's first positions, turn by turn, in RAM.

    weights  identifies the weights that computed them: the model, its patches and its dtype
    """

    weights: Hashable
    turns: tuple[KeysAndValues, ...] = ()

    @property
    def length(self) -> int:
        """Number of cached positions."""
        return sum(keys.shape[2] for keys, _ in self.turns)


class Conversation(NamedTuple):
    """Complete turns of the user and of the model.

    A tuple, because ComfyUI counts the memory of an output by looking for tensors in lists and tuples; older versions
    call `get_ram_usage`. Turns that several conversations share are counted in each of them.

    cache    of some or all turns; None if none was kept
    patches  of the visual inputs among `tokens`
    """

    tokens: tuple[Token, ...] = ()
    cache: PromptCache | None = None
    patches: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, tokens: Sequence[Token], cache: PromptCache | None = None) -> Conversation:
        """A conversation in a form in which ComfyUI counts all of its tensors."""
        patches = (token.patches for token in tokens if isinstance(token, VisualInput))
        return cls(tuple(tokens), cache, tuple(patches))

    def get_ram_usage(self) -> int:
        """Bytes of its tensors."""
        turns = self.cache.turns if self.cache else ()
        return sum(tensor.nbytes for tensor in (*self.patches, *(half for turn in turns for half in turn)))


def split_thinking(ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Generated ids -> (the inside of the think block, the answer after it), without end tokens."""
    ids = without_end(ids)
    if Control.THINK not in ids and Control.END_THINK not in ids:
        return [], ids
    start = ids.index(Control.THINK) + 1 if Control.THINK in ids else 0
    if Control.END_THINK not in ids:
        return ids[start:], []
    end = ids.index(Control.END_THINK)
    return ids[start:end], ids[end + 1 :]


def with_answer(tokens: Sequence[Token], ids: Sequence[int], thinking: bool, tokenizer: Tokenizer) -> tuple[Token, ...]:
    """A prompt and the generated ids as complete turns, without the thinking, as in the model's own template."""
    end = tokenizer.encode(prompts.answer_end())
    if not thinking:
        return (*tokens, *without_end(ids), *end)
    answer = split_thinking(ids)[1] or tokenizer.encode([prompts.AFTER_THINKING])
    return (*tokens, *tokenizer.encode(prompts.EMPTY_THINKING), *answer, *end)


def without_end(ids: Sequence[int]) -> list[int]:
    """Generated ids without the end token."""
    return [i for i in ids if i not in prompts.END_TOKENS]
