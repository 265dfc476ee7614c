"""The loop that improves images, as graphs of the pack's nodes that ComfyUI runs in the place of a node.

Each step of the loop is a node (`STEP`). It takes a score or an answer, decides with `text/rounds.py`, and returns the
nodes that come next, with another step after them. The nodes get values, not links: a link would bring all of a list,
and run the nodes before it again if ComfyUI keeps no outputs.

ComfyUI's cache does not keep the outputs of such nodes until the next run (newer versions drop them if the machine has
less than 128 GB of RAM). So the rounds are kept here, as long as the CLIP that made them exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ..text.prompts import PROMPT_SLOT, fill
from ..text.rounds import ASK, DONE, JUDGE, Course, Goal, seed_of
from .progress import show_text

STEP = "_OvisU1ImproveStep"
MAX_NEW_TOKENS = 96  # of the instruction
LOOPS = 4  # that are kept for a CLIP
FIRST = Course()


@dataclass
class Known:
    """The rounds of one image that have been computed.

    edits  those that were the best so far, by the round: (1, height, width, 3)
    """

    course: Course = FIRST
    edits: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop that runs.

    parts           MODEL, CLIP and VAE by the names of nodes' inputs
    sampler         steps and scales of the edits
    judge_question  may contain {prompt}
    images          each (1, height, width, channels)
    known           of each image
    shown           the text that the node keeps, as its only element
    course          of the image that is being improved
    finished        the results of the images before it, and their courses
    """

    goal: Goal
    parts: Mapping[str, Any]
    sampler: Mapping[str, Any]
    seed: int
    judge_question: str
    images: tuple[Tensor, ...]
    known: list[Known]
    shown: list[str]
    course: Course
    finished: tuple[tuple[Tensor, Course], ...] = ()

    @property
    def best(self) -> Tensor:
        """The best image so far of the one that is being improved."""
        number, best = len(self.finished), self.course.best
        return self.known[number].edits[best] if best else self.images[number]

    @property
    def log(self) -> str:
        """The log of all images so far."""
        courses = [*(course for _, course in self.finished), self.course][: len(self.images)]
        logs = [course.log(self.goal) for course in courses]
        if len(self.images) > 1:
            logs = [f"Image {number} of {len(self.images)}\n{log}" for number, log in enumerate(logs, 1)]
        return "\n\n".join(logs)


@dataclass(frozen=True, eq=False)
class Step:
    """The result of a step.

    outputs  images, their scores and the log; or links to them
    graph    the nodes that make the outputs; None if the loop has ended
    text     for the node: the log, or a list with one text that the last step of the loop replaces by the log
    """

    outputs: tuple[Any, ...]
    graph: dict[str, Any] | None
    text: str | list[str]


def start(
    goal: Goal,
    image: Tensor,
    parts: Mapping[str, Any],
    sampler: Mapping[str, Any],
    seed: int,
    judge_question: str,
) -> Step:
    """The first step: its nodes, or the results if all rounds are known.

    image    (batch, height, width, channels); each image of the batch is improved, one after the other
    parts    MODEL, CLIP and VAE as "model", "clip" and "vae"
    sampler  steps, txt_cfg and img_cfg of the edits
    """
    settings = (goal.prompt, goal.question, goal.instruction, judge_question, seed, *sampler.items())
    known = _recall(parts, image, settings)
    course = known[0].course.until(goal)
    loop = Loop(goal, parts, sampler, seed, judge_question, image.split(1), known, [""], course)
    # ComfyUI keeps the text that a node returns with its nodes, so the log is put into it when the loop ends.
    return replace(_advance(loop), text=loop.shown)


def step(loop: Loop, score: float | None = None, answer: str | None = None, edit: Tensor | None = None) -> Step:
    """The next step, after an answer, or after a score: of `edit`, or of the image as it came if there is no edit."""
    known = loop.known[len(loop.finished)]
    course = loop.course.judged(score) if answer is None else loop.course.answered(answer, loop.goal)
    if edit is not None and course.best > loop.course.best:
        known.edits[course.best] = edit
    known.course = course
    made = _advance(replace(loop, course=course))
    show_text(made.text)
    return made


def _advance(loop: Loop) -> Step:
    graph = GraphBuilder()
    while (following := loop.course.next(loop.goal)) == DONE:
        loop = replace(loop, finished=(*loop.finished, (loop.best, loop.course)))
        if len(loop.finished) == len(loop.images):
            return _finish(loop)
        loop = replace(loop, course=loop.known[len(loop.finished)].course.until(loop.goal))
    if following == JUDGE:
        return _then(graph, loop, score=_score(graph, loop, loop.best))
    return _ask(graph, loop) if following == ASK else _edit(graph, loop)


def _score(graph: GraphBuilder, loop: Loop, image: Any) -> Any:
    prompt = loop.goal.prompt if PROMPT_SLOT in loop.judge_question else ""
    texts = {"question": loop.judge_question, "prompt": prompt}
    return graph.node("OvisU1Judge", "judge", clip=loop.parts["clip"], images=image, **texts).out(0)


def _ask(graph: GraphBuilder, loop: Loop) -> Step:
    question = fill(loop.goal.question, prompt=loop.goal.prompt)
    inputs = {"clip": loop.parts["clip"], "prompt": question, "image": loop.best, "max_new_tokens": MAX_NEW_TOKENS}
    return _then(graph, loop, answer=graph.node("OvisU1Understand", "ask", **inputs).out(0))


def _edit(graph: GraphBuilder, loop: Loop) -> Step:
    if not loop.course.editing:
        loop = replace(loop, course=loop.course.repeated(loop.goal))
    clip, vae = loop.parts["clip"], loop.parts["vae"]
    instruction = loop.course.instructions[-1]
    encoded = graph.node("OvisU1EditEncode", "encode", clip=clip, vae=vae, image=loop.best, prompt=instruction)
    sampled = graph.node(
        "OvisU1Sampler",
        "sample",
        model=loop.parts["model"],
        positive=encoded.out(0),
        image_only=encoded.out(1),
        negative=encoded.out(2),
        latent=encoded.out(3),
        seed=seed_of(loop.seed, loop.course),
        sampler_name="euler",
        scheduler="ovis_u1",
        denoise=1.0,
        **loop.sampler,
    )
    decoded = graph.node("OvisU1Decode", "decode", samples=sampled.out(0), vae=vae, restore_size=True).out(0)
    return _then(graph, loop, score=_score(graph, loop, decoded), edit=decoded)


def _then(graph: GraphBuilder, loop: Loop, **results: Any) -> Step:
    following = graph.node(STEP, "step", loop=loop, **results)
    return Step(tuple(following.out(slot) for slot in range(3)), graph.finalize(), loop.log)


def _finish(loop: Loop) -> Step:
    images, courses = zip(*loop.finished, strict=True)
    channels = min(image.shape[-1] for image in images)  # an edit has no alpha channel
    whole = torch.cat([image[..., :channels].to(images[0].device) for image in images])
    loop.shown[:] = [loop.log]
    return Step((whole, [course.score for course in courses], loop.log), None, loop.log)


# ---- the rounds that have been computed


@dataclass(frozen=True, eq=False)
class _Kept:
    model: ref[Any]
    vae: ref[Any]
    image: Tensor
    settings: tuple[Any, ...]
    known: list[Known]


_kept: WeakKeyDictionary[Any, list[_Kept]] = WeakKeyDictionary()  # CLIP -> its last loops


def _recall(parts: Mapping[str, Any], image: Tensor, settings: tuple[Any, ...]) -> list[Known]:
    """What is known of each image of a batch under these settings, which are all but threshold and rounds."""
    model, vae = parts["model"], parts["vae"]
    loops = _kept.setdefault(parts["clip"], [])
    for loop in loops:
        if loop.model() is model and loop.vae() is vae and loop.settings == settings and _same(loop.image, image):
            return loop.known
    known = [Known() for _ in image]
    loops[:] = [*loops, _Kept(ref(model), ref(vae), image, settings, known)][-LOOPS:]
    return known


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or ((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and torch.equal(a, b))
