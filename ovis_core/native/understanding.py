"""Questions and pictures -> words, or how much an image is what was asked for."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import comfy.sd
import comfy.utils
import torch
from comfy import model_management
from torch import Tensor

from ..conversation import Computed, Conversation, closed, thoughts_and_answer, without_end
from ..multimodal import Token, sequence_length
from ..next_token import Sampling
from ..tokenizer import Tokenizer

YES, NO = ("Yes", "yes"), ("No", "no")


@dataclass(frozen=True)
class Answer:
    """What the model wrote.

    reasoning     what stood inside its think block
    conversation  with this question and answer at its end
    """

    text: str
    reasoning: str
    conversation: Conversation


@dataclass(frozen=True)
class Verdict:
    """What the model said of several images.

    scores  of each image, in order: the probability of yes, normalised over yes and no
    order   indexes of the images, highest score first
    """

    scores: list[float]
    order: list[int]

    @property
    def ranking(self) -> str:
        """A line for each image, highest score first."""
        lines = (f"{place}. image {i + 1}: {self.scores[i]:.4f}" for place, i in enumerate(self.order, 1))
        return "\n".join(lines)


def understand(
    clip: comfy.sd.CLIP,
    prompt: str,
    images: Sequence[Tensor],
    frames: Sequence[Tensor],
    max_frames: int,
    max_new_tokens: int,
    thinking: bool,
    sampling: Sampling,
    before: Conversation | None = None,
    keep: bool = True,
) -> Answer:
    """Answers a question in words alone, about images, or about a video's frames; each (height, width, channels).

    before  the conversation that goes on
    keep    keep what was computed with the conversation, in RAM, so that it is not computed again when it goes on

    Raises ValueError when the conversation takes more positions than the language model has.
    """
    before = before or Conversation()
    model, tokenizer = clip.cond_stage_model, clip.tokenizer.tokenizer
    tokens = [*before.tokens, *clip.tokenizer.question(prompt, images, frames, max_frames, thinking)]
    room = model.room(tokens, max_new_tokens)
    if room < max_new_tokens:
        logging.warning("Ovis-U1: the conversation leaves room for %d of max_new_tokens %d.", room, max_new_tokens)
    with _loaded(clip, model.memory_for(tokens, room)):
        made_by = _maker(clip)
        known = before.computed
        if known is None or made_by is None or known.made_by != made_by:
            known = Computed(made_by)
        ids, cache = model.write(tokens, room, sampling, known.turns, tokenizer)
    # Without thinking its block came with the prompt; whatever the model writes then is its answer.
    thoughts, answer = thoughts_and_answer(ids) if thinking else ([], without_end(ids))
    computed = None
    if keep and made_by is not None:
        # The conversation goes on without the thoughts: what was written after them was computed with them in sight.
        end = sequence_length(tokens) if thinking else cache.length
        computed = Computed(made_by, (*known.turns, cache.copy(known.length, end)))
    return Answer(
        _text(tokenizer, answer, thinking),
        _text(tokenizer, thoughts, True),
        Conversation.of(closed(tokens, ids, thinking, tokenizer), computed),
    )


def judge(clip: comfy.sd.CLIP, images: Sequence[Tensor], question: str) -> Verdict:
    """Asks about each image (height, width, channels), and weighs "yes" against "no" as the answer's first word.

    Raises ValueError when a question takes more positions than the language model has.
    """
    asked = [clip.tokenizer.question(question, [image]) for image in images]
    scores = [yes for yes, _ in _first_words(clip, asked, (YES, NO))]
    return Verdict(scores, sorted(range(len(scores)), key=lambda i: -scores[i]))


def choose(clip: comfy.sd.CLIP, images: Sequence[Tensor], question: str, choices: Sequence[str]) -> list[float]:
    """The probability of each choice as the first word of the answer about all images; together they make 1.

    Raises ValueError where two choices begin with the same token, by which they are told apart.
    """
    first: dict[int, str] = {}
    for choice in choices:
        other = first.setdefault(clip.tokenizer.tokenizer.encode([choice])[0], choice)
        if other != choice:
            raise ValueError(
                f"choices: {other!r} and {choice!r} begin alike; give words that differ from the first on."
            )
    asked = clip.tokenizer.question(question, images)
    return _first_words(clip, [asked], [(choice,) for choice in choices])[0]


def _first_words(
    clip: comfy.sd.CLIP, asked: Sequence[list[Token]], choices: Sequence[Sequence[str]]
) -> list[list[float]]:
    """For each question the probability of each choice, which may be spelled in several ways."""
    model, tokenizer = clip.cond_stage_model, clip.tokenizer.tokenizer
    words = torch.tensor([tokenizer.encode([word])[0] for choice in choices for word in choice])
    progress = comfy.utils.ProgressBar(len(asked))
    scores = []
    with _loaded(clip, max(model.memory_for(tokens, 1) for tokens in asked)):
        for tokens in asked:
            _, logits = model.read(tokens, 1, model.run_device, model.writing_dtype)
            likely = logits[words.to(logits.device)].softmax(0).split([len(choice) for choice in choices])
            scores.append([float(part.sum()) for part in likely])
            progress.update(1)
    return scores


def _loaded(clip: comfy.sd.CLIP, memory: int) -> AbstractContextManager[None]:
    """Loads the text encoder beside `memory` bytes for its work; to be entered while it works."""
    model_management.load_models_gpu([clip.patcher], memory_required=memory)
    device = clip.patcher.load_device
    clip.cond_stage_model.set_clip_options({"execution_device": device})
    on_device = getattr(model_management, "cuda_device_context", None)
    return on_device(device) if on_device else nullcontext()


def _maker(clip: comfy.sd.CLIP) -> Hashable:
    """What keys and values depend on besides the tokens; None where hooks change the weights as they please."""
    if clip.patcher.forced_hooks is not None:
        return None
    return (clip.patcher.patches_uuid, clip.cond_stage_model.writing_dtype)


def _text(tokenizer: Tokenizer, ids: Sequence[Token], trim: bool) -> str:
    text = tokenizer.decode(ids)
    return text.strip("\n") if trim else text
