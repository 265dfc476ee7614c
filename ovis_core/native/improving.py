"""The loop that improves images, as graphs of the pack's nodes that ComfyUI runs in the place of a node.

Each step of the loop is a node (`STEP`). It takes a score or an answer, decides with `text/rounds.py`, and returns the
nodes that come next, with another step after them. These nodes get links, and texts and numbers as values, so ComfyUI's
cache knows them again in the next run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy.cli_args import args
from comfy_execution.graph_utils import GraphBuilder, is_link
from torch import Tensor

from ..text.prompts import PROMPT_SLOT, fill
from ..text.rounds import ASK, EDIT, Course, Goal, seed_of
from .compat import list_flags
from .progress import show_text

STEP = "_OvisU1ImproveStep"
MAX_NEW_TOKENS = 96  # of the instruction
FIRST = Course()


@dataclass(frozen=True, eq=False)
class Picture:
    """One image (1, height, width, channels).

    source  what nodes get as their input: a link to it, or the image itself
    """

    pixels: Tensor
    source: Any


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop that runs. None of it is an input that ComfyUI takes for a link.

    parts           links to MODEL, CLIP and VAE, or these themselves
    sampler         steps and scales of the edits
    judge_question  may contain {prompt}
    waiting         the images of the batch that come after this one
    best            the best image so far of the one that is being improved
    edit            the edit that is being judged; None before the first one
    done            the images that are finished, and their courses
    shown           the text that the node keeps, as its only element
    """

    goal: Goal
    parts: Mapping[str, Any]
    sampler: Mapping[str, Any]
    seed: int
    judge_question: str
    waiting: tuple[Picture, ...]
    best: Picture
    shown: list[str]
    edit: Any = None
    course: Course = FIRST
    done: tuple[tuple[Picture, Course], ...] = ()

    @property
    def log(self) -> str:
        """The log of all images so far."""
        courses = [*(course for _, course in self.done), self.course]
        count = len(courses) + len(self.waiting)
        logs = [course.log(self.goal) for course in courses]
        if count > 1:
            logs = [f"Image {number} of {count}\n{log}" for number, log in enumerate(logs, 1)]
        return "\n\n".join(logs)


@dataclass(frozen=True, eq=False)
class Step:
    """The result of a step.

    outputs  images, their scores and the log; or links to them
    graph    the nodes that make the outputs
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
    running: Any,
    node: str,
    node_classes: Mapping[str, type],
) -> Step:
    """The first nodes of the loop.

    image         (batch, height, width, channels); each image of the batch is improved, one after the other
    parts         MODEL, CLIP and VAE by the names of the inputs
    sampler       steps, txt_cfg and img_cfg of the edits
    running       the prompt that runs, ComfyUI's DynamicPrompt
    node          id of the node in it
    node_classes  ComfyUI's table of classes by their ids
    """
    graph = GraphBuilder()
    inputs = running.get_node(node)["inputs"]

    def source(name: str, value: Any) -> Any:
        # Without a cache, each new node would run the nodes again that its links lead to. Of a list, a link has all.
        link = inputs.get(name)
        usable = is_link(link) and not args.cache_none and not _is_list(running, link, node_classes)
        return link if usable else value

    whole = source("image", image)
    pictures = []
    for index in range(len(image)):
        pixels, one = image[index : index + 1], whole
        if len(image) > 1:
            one = pixels
            if is_link(whole):
                one = graph.node("ImageFromBatch", f"image{index}", image=whole, batch_index=index, length=1).out(0)
        pictures.append(Picture(pixels, one))
    loop = Loop(
        goal=goal,
        parts={name: source(name, value) for name, value in parts.items()},
        sampler=sampler,
        seed=seed,
        judge_question=judge_question,
        waiting=tuple(pictures[1:]),
        best=pictures[0],
        shown=[""],
    )
    # ComfyUI keeps what a node shows before its graph runs, so the text must be in place of it later.
    return replace(_judge(graph, loop), text=loop.shown)


def step(loop: Loop, score: float | None = None, answer: str | None = None, edit: Tensor | None = None) -> Step:
    """The next step, after a score of `edit`, or of the first image if there is no edit yet, or after an answer."""
    if answer is not None:
        loop = replace(loop, course=loop.course.answered(answer, loop.goal))
    else:
        loop = _judged(loop, score, edit)
    course, goal = loop.course, loop.goal
    edits = len(course.instructions) == len(course.scores)
    following = EDIT if edits else course.next(goal)
    if following == EDIT and not edits:
        loop = replace(loop, course=course.repeated(goal))
    graph = GraphBuilder()
    if following == ASK:
        made = _ask(graph, loop)
    elif following == EDIT:
        made = _edit(graph, loop)
    elif loop.waiting:
        best, *waiting = loop.waiting
        done = (*loop.done, (loop.best, course))
        loop = replace(loop, best=best, waiting=tuple(waiting), edit=None, course=FIRST, done=done)
        made = _judge(graph, loop)
    else:
        made = _finished(loop)
    show_text(made.text)
    return made


def _judged(loop: Loop, score: float, edit: Tensor | None) -> Loop:
    course = loop.course.judged(score)
    if course.best == loop.course.best or edit is None:
        return replace(loop, course=course)
    return replace(loop, course=course, best=Picture(edit, loop.edit if is_link(loop.edit) else edit))


def _judge(graph: GraphBuilder, loop: Loop) -> Step:
    return _then(graph, loop, score=_score(graph, loop, loop.best.source))


def _score(graph: GraphBuilder, loop: Loop, image: Any) -> Any:
    prompt = loop.goal.prompt if PROMPT_SLOT in loop.judge_question else ""
    texts = {"question": loop.judge_question, "prompt": prompt}
    return graph.node("OvisU1Judge", "judge", clip=loop.parts["clip"], images=image, **texts).out(0)


def _ask(graph: GraphBuilder, loop: Loop) -> Step:
    question = fill(loop.goal.question, prompt=loop.goal.prompt)
    asked = graph.node(
        "OvisU1Understand",
        "ask",
        clip=loop.parts["clip"],
        prompt=question,
        image=loop.best.source,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    return _then(graph, loop, answer=asked.out(0))


def _edit(graph: GraphBuilder, loop: Loop) -> Step:
    parts, course = loop.parts, loop.course
    encoded = graph.node(
        "OvisU1EditEncode",
        "encode",
        clip=parts["clip"],
        vae=parts["vae"],
        image=loop.best.source,
        prompt=course.instructions[-1],
    )
    conditions = {name: encoded.out(slot) for slot, name in enumerate(("positive", "image_only", "negative", "latent"))}
    sampled = graph.node(
        "OvisU1Sampler",
        "sample",
        model=parts["model"],
        seed=seed_of(loop.seed, course),
        sampler_name="euler",
        scheduler="ovis_u1",
        denoise=1.0,
        **conditions,
        **loop.sampler,
    )
    decoded = graph.node("OvisU1Decode", "decode", samples=sampled.out(0), vae=parts["vae"], restore_size=True)
    kept = None if args.cache_none else decoded.out(0)
    return _then(graph, replace(loop, edit=kept), score=_score(graph, loop, decoded.out(0)), edit=decoded.out(0))


def _then(graph: GraphBuilder, loop: Loop, **results: Any) -> Step:
    following = graph.node(STEP, "step", loop=loop, **results)
    return Step(tuple(following.out(slot) for slot in range(3)), graph.finalize(), loop.log)


def _finished(loop: Loop) -> Step:
    images, courses = zip(*loop.done, (loop.best, loop.course), strict=True)
    channels = min(image.pixels.shape[-1] for image in images)  # an edit has no alpha channel
    whole = torch.cat([image.pixels[..., :channels].to(images[0].pixels.device) for image in images])
    loop.shown[:] = [loop.log]
    return Step((whole, [course.score for course in courses], loop.log), None, loop.log)


def _is_list(graph: Any, link: list[Any], node_classes: Mapping[str, type], seen: set[str] | None = None) -> bool:
    """Whether a link brings a list, for each of whose elements ComfyUI runs the node that takes it."""
    seen = set() if seen is None else seen
    name, slot = link
    node = graph.get_node(name)
    takes, gives = list_flags(node_classes[node["class_type"]])
    if slot < len(gives) and gives[slot]:
        return True
    if takes or name in seen:
        return False
    seen.add(name)
    return any(is_link(value) and _is_list(graph, value, node_classes, seen) for value in node["inputs"].values())
