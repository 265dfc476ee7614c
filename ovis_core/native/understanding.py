"""Questions, images and videos -> an answer, or the probabilities of given answers."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import comfy.sd
import comfy.utils
import torch
from comfy_api.latest import Input
from torch import Tensor

from ..multimodal import Token, sequence_length
from ..pixels import Frames
from ..text import prompts
from ..text.conversation import Conversation, PromptCache, split_thinking, with_answer, without_end
from ..text.decoding import Sampling
from ..text.tokenizer import Tokenizer
from .clip import load_clip
from .compat import device_context
from .page.input_warnings import warn_of_empty_prompt
from .page.progress import DecodingProgress, listed
from .video_frames import frames_of

YES, NO = ("Yes", "yes"), ("No", "no")


@dataclass(frozen=True)
class Answer:
    """An answer of the model.

    reasoning     the inside of its think block
    conversation  the turns so far, ending with this question and answer
    """

    text: str
    reasoning: str
    conversation: Conversation


@dataclass(frozen=True)
class Verdict:
    """The model's judgement of several images.

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


def understand_images(
    clip: comfy.sd.CLIP, prompt: str, images: Sequence[Tensor], each_image: bool, **options: Any
) -> list[Answer]:
    """The answer about all images; if `each_image` is on and there are several, one answer about each.

    Takes the options of `understand`, and raises as it does.
    """
    if not each_image or len(images) < 2:
        return [understand(clip, prompt, images, **options)]
    answers: list[Answer] = []
    for image in images:
        earlier = [answer.text for answer in answers]
        progress = DecodingProgress(options["max_new_tokens"], clip.tokenizer.tokenizer, earlier, len(images))
        answers.append(understand(clip, prompt, [image], progress=progress, **options))
    return answers


def as_one_text(answers: Sequence[Answer]) -> str:
    """The answers of `understand_images` in one text; several are numbered like their images."""
    return listed([answer.text for answer in answers]) if len(answers) > 1 else answers[0].text


def understand(
    clip: comfy.sd.CLIP,
    prompt: str,
    images: Sequence[Tensor],
    video: Frames | Input.Video,
    max_frames: int,
    max_new_tokens: int,
    thinking: bool,
    sampling: Sampling,
    before: Conversation | None = None,
    keep: bool = True,
    system_prompt: str = "",
    progress: DecodingProgress | None = None,
) -> Answer:
    """Answers a question about images, about a video, or without either; each image (height, width, channels).

    video          its frames, likewise, or a VIDEO; at most `max_frames` frames are used
    before         the conversation that the question continues
    keep           keep the keys and values of the conversation in RAM, so that the next question does not compute them
                   again
    system_prompt  text of a turn before the first question; a conversation keeps it
    progress       of this answer; None: a bar, and the text on the node

    Raises ValueError if the conversation takes more positions than the language model has, or has begun with another
    system prompt.
    """
    warn_of_empty_prompt(prompt, "write a question or an instruction in it")
    model, tokenizer = clip.cond_stage_model, clip.tokenizer.tokenizer
    if before:
        _check_system_prompt(before, tokenizer.encode(prompts.system_turn(system_prompt)))
        system_prompt = ""
    before = before or Conversation()
    frames = frames_of(video) if isinstance(video, Input.Video) else video
    asked = clip.tokenizer.question(prompt, images, frames, max_frames, thinking, system_prompt)
    tokens = [*before.tokens, *asked]
    limit = model.limit_new_tokens(tokens, max_new_tokens)
    if limit < max_new_tokens:
        logging.warning(
            "Ovis-U1: max_new_tokens is %d, but only %d tokens fit after the prompt; shorten the conversation for a "
            "longer answer.",
            max_new_tokens,
            limit,
        )
    with _loaded(clip, tokens, model.memory_for(tokens, limit)):
        weights = _weights_id(clip)
        past = before.cache
        if past is None or weights is None or past.weights != weights:
            past = PromptCache(weights)
        progress = progress or DecodingProgress(limit, tokenizer)
        ids, cache = model.generate_ids(tokens, limit, sampling, past.turns, progress)
    # Without `thinking` the prompt ends with an empty think block, and all that follows is the answer.
    reasoning, answer = split_thinking(ids) if thinking else ([], without_end(ids))
    kept = None
    if keep and weights is not None:
        # The conversation continues without the reasoning, but keys and values after it were computed with it.
        end = sequence_length(tokens) if thinking else cache.length
        kept = PromptCache(weights, (*past.turns, cache.copy(past.length, end)))
    return Answer(
        _text(tokenizer, answer, thinking),
        _text(tokenizer, reasoning, True),
        Conversation.of(with_answer(tokens, ids, thinking, tokenizer), kept),
    )


def judge(clip: comfy.sd.CLIP, images: Sequence[Tensor], question: str) -> Verdict:
    """For each image (height, width, channels) the probability of "yes" as the answer's first word, against "no".

    Raises ValueError if a question takes more positions than the language model has.
    """
    questions = [clip.tokenizer.question(question, [image]) for image in images]
    scores = [yes for yes, _ in _first_words(clip, questions, (YES, NO))]
    return Verdict(scores, sorted(range(len(scores)), key=lambda i: -scores[i]))


def choose(clip: comfy.sd.CLIP, images: Sequence[Tensor], question: str, choices: Sequence[str]) -> list[float]:
    """The probability of each choice as the first word of the answer about all images, normalised over the choices.

    Raises ValueError if two choices begin with the same token, because only that is compared.
    """
    first: dict[int, str] = {}
    for choice in choices:
        other = first.setdefault(clip.tokenizer.tokenizer.encode([choice])[0], choice)
        if other != choice:
            raise ValueError(
                f"choices: expected choices that begin with different tokens, got {other!r} and {choice!r}; change one "
                "of them."
            )
    tokens = clip.tokenizer.question(question, images)
    return _first_words(clip, [tokens], [(choice,) for choice in choices])[0]


def _first_words(
    clip: comfy.sd.CLIP, questions: Sequence[list[Token]], choices: Sequence[Sequence[str]]
) -> list[list[float]]:
    """For each question the probability of each choice as the first token; a choice may have several spellings."""
    model, tokenizer = clip.cond_stage_model, clip.tokenizer.tokenizer
    first_tokens = torch.tensor([tokenizer.encode([word])[0] for choice in choices for word in choice])
    progress = comfy.utils.ProgressBar(len(questions))
    scores = []
    memory = max(model.memory_for(tokens, 1) for tokens in questions)
    with _loaded(clip, chain.from_iterable(questions), memory):
        for tokens in questions:
            _, logits = model.prefill(tokens, 1)
            probs = logits[first_tokens.to(logits.device)].softmax(0).split([len(choice) for choice in choices])
            scores.append([float(part.sum()) for part in probs])
            progress.update(1)
    return scores


def _check_system_prompt(before: Conversation, turn: Sequence[Token]) -> None:
    """Raises ValueError if a conversation does not begin with `turn`, the tokens of a system prompt or none."""
    if before.tokens[: len(turn)] != tuple(turn):
        raise ValueError(
            "system_prompt: expected no text or the first question's system prompt, because history continues a "
            "conversation, got different text; clear system_prompt, or disconnect history."
        )


def _loaded(clip: comfy.sd.CLIP, tokens: Iterable[Token], memory: int) -> AbstractContextManager[None]:
    """Loads the text encoder for `tokens` and frees `memory` bytes; returns the context to run it in."""
    load_clip(clip, tokens, memory)
    device = clip.patcher.load_device
    clip.cond_stage_model.set_clip_options({"execution_device": device})
    return device_context(device)


def _weights_id(clip: comfy.sd.CLIP) -> Hashable:
    """Identifies the weights that compute keys and values; None if hooks may change them at any time."""
    if clip.patcher.forced_hooks is not None:
        return None
    return (clip.patcher.patches_uuid, clip.cond_stage_model.decode_dtype)


def _text(tokenizer: Tokenizer, ids: Sequence[Token], trim: bool) -> str:
    text = tokenizer.decode(ids)
    return text.strip("\n") if trim else text
