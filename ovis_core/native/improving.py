"""The loop that improves images, as graphs of the pack's nodes that ComfyUI runs instead of a node.

Each image has a first node (`STEP`), and a last node (`RESULT`) joins the results. A step takes a score or an answer,
decides with `improvement/rounds.py`, and returns the image's result, or the nodes that come next, with another step
after them. These nodes get values, not links to nodes outside: a link would bring all of a list, and run the nodes
before it again if ComfyUI keeps no outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ..improvement.rounds import ASK, DONE, JUDGE, Goal, Rounds, seed_of
from ..improvement.rounds_cache import ComputedRounds, RoundsCache
from ..pixels import join
from ..schedule import SCHEDULER
from ..text.prompts import PROMPT_SLOT, fill
from .page.input_warnings import warn_of_image_size
from .page.results import GrowingText

STEP, RESULT = "_OvisU1ImproveStep", "_OvisU1ImproveResult"
OUTPUTS = 3  # of RESULT and of the node that makes it
ANSWER_TOKENS = 96
# ComfyUI walks along the links of a graph by recursion, and Python allows about 1000 levels.
MAX_IMAGES = 256

_cache = RoundsCache(limit=512_000_000)


@dataclass(frozen=True, eq=False)
class Result:
    """The best image (1, height, width, channels), and the rounds that led to it."""

    image: Tensor
    rounds: Rounds


@dataclass(frozen=True, eq=False)
class Loop:
    """The loop of one image.

    parts           MODEL, CLIP and VAE by the names of nodes' inputs
    sampler         steps and scales of the edits
    judge_question  may contain {prompt}
    image           (1, height, width, channels)
    images          how many there are in the batch
    computed        gets what is computed
    text            of the node that started the loop
    earlier         results of the images before it
    """

    goal: Goal
    parts: Mapping[str, Any]
    sampler: Mapping[str, Any]
    seed: int
    judge_question: str
    image: Tensor
    images: int
    computed: ComputedRounds
    rounds: Rounds
    text: GrowingText
    earlier: tuple[Result, ...] = ()

    @property
    def best(self) -> Tensor:
        """The best image so far."""
        return self.computed.edits[self.rounds.best] if self.rounds.best else self.image

    @property
    def results(self) -> tuple[Result, ...]:
        """Results of the images so far."""
        return (*self.earlier, Result(self.best, self.rounds))

    @property
    def log(self) -> str:
        """The log of the images so far."""
        return _log(self.goal, [result.rounds for result in self.results], self.images)


@dataclass(frozen=True, eq=False)
class Expansion:
    """The return value of a node of the loop.

    outputs  values, or links to nodes of the graph
    graph    the nodes that make the outputs; None if the outputs are values
    ui       text and warnings for the node
    """

    outputs: tuple[Any, ...]
    graph: dict[str, Any] | None = None
    ui: dict[str, Any] | None = None


def start(
    goal: Goal,
    image: Tensor,
    parts: Mapping[str, Any],
    sampler: Mapping[str, Any],
    seed: int,
    judge_question: str,
) -> Expansion:
    """The first steps, or the best images, their scores and the log if all rounds are known.

    image    (batch, height, width, channels); each image of the batch is improved, one after the other
    parts    MODEL, CLIP and VAE as "model", "clip" and "vae"
    sampler  steps, txt_cfg and img_cfg of the edits

    Raises ValueError for more than `MAX_IMAGES` images.
    """
    if len(image) > MAX_IMAGES:
        raise ValueError(
            f"image: expected at most {MAX_IMAGES} images, got {len(image)}; split the batch with Rebatch Images."
        )
    warn_of_image_size(parts["clip"].tokenizer.side, *image.shape[1:3])
    settings = (goal.prompt, goal.question, goal.instruction, judge_question, seed, *sampler.items())
    computed = [_cache.recall(parts.values(), one, settings) for one in image.split(1)]
    rounds = [known.rounds.limited_to(goal) for known in computed]
    text = GrowingText(_log(goal, rounds[:1], len(image)))
    loops = [
        Loop(goal, parts, sampler, seed, judge_question, one, len(image), known, done, text)
        for one, known, done in zip(image.split(1), computed, rounds, strict=True)
    ]
    if all(done.next(goal) == DONE for done in rounds):
        outputs = _outputs(goal, [loop.results[-1] for loop in loops])
        return Expansion(outputs, ui=GrowingText(outputs[-1]).ui)
    graph = GraphBuilder()
    links: dict[str, Any] = {}  # from each image to the next, so that they are improved in order
    for number, loop in enumerate(loops, 1):
        links = {"earlier": graph.node(STEP, f"image_{number}", loop=loop, **links).out(0)}
    last = graph.node(RESULT, "result", loop=loops[-1], results=links["earlier"])
    return Expansion(tuple(last.out(slot) for slot in range(OUTPUTS)), graph.finalize(), text.ui)


def step(
    loop: Loop,
    score: float | None = None,
    answer: str | None = None,
    edit: Tensor | None = None,
    earlier: tuple[Result, ...] | None = None,
) -> Expansion:
    """An image's next step: the nodes that come next, or the results of the images so far.

    The first step has the results of the images `earlier`, if there are any. Each other step has an answer, or a score:
    of `edit`, or of the input image if there is no edit.
    """
    if score is not None:
        loop = replace(loop, rounds=loop.rounds.judged(score))
    elif answer is not None:
        loop = replace(loop, rounds=loop.rounds.answered(answer, loop.goal))
    else:  # an equal image may have been improved since the start
        loop = replace(loop, rounds=loop.computed.rounds.limited_to(loop.goal), earlier=earlier or ())
    loop.computed.add(loop.rounds, edit)
    _cache.trim()
    following = loop.rounds.next(loop.goal)
    graph = GraphBuilder()
    if following == DONE:
        made = Expansion((loop.results,))
    elif following == JUDGE:
        made = _then(graph, loop, score=_score(graph, loop, loop.best))
    elif following == ASK:
        made = _ask(graph, loop)
    else:
        if not loop.rounds.editing:
            loop = replace(loop, rounds=loop.rounds.repeated(loop.goal))
        made = _edit(graph, loop)
    loop.text.replace(loop.log)
    return made


def finish(loop: Loop, results: Sequence[Result]) -> Expansion:
    """The best images, their scores and the log, after the last image's loop."""
    outputs = _outputs(loop.goal, results)
    loop.text.replace(outputs[-1], complete=True)
    return Expansion(outputs)


def _outputs(goal: Goal, results: Sequence[Result]) -> tuple[Tensor, list[float], str]:
    rounds = [result.rounds for result in results]
    return join([result.image for result in results]), [done.score for done in rounds], _log(goal, rounds, len(rounds))


def _log(goal: Goal, rounds: Sequence[Rounds], images: int) -> str:
    logs = [done.log(goal) for done in rounds]
    if images > 1:
        logs = [f"Image {number} of {images}\n{log}" for number, log in enumerate(logs, 1)]
    return "\n\n".join(logs)


def _score(graph: GraphBuilder, loop: Loop, image: Any) -> Any:
    prompt = loop.goal.prompt if PROMPT_SLOT in loop.judge_question else ""
    texts = {"question": loop.judge_question, "prompt": prompt}
    return graph.node("OvisU1Judge", "judge", clip=loop.parts["clip"], images=image, **texts).out(0)


def _ask(graph: GraphBuilder, loop: Loop) -> Expansion:
    question = fill(loop.goal.question, prompt=loop.goal.prompt)
    inputs = {"clip": loop.parts["clip"], "prompt": question, "image": loop.best, "max_new_tokens": ANSWER_TOKENS}
    return _then(graph, loop, answer=graph.node("OvisU1Understand", "ask", **inputs).out(0))


def _edit(graph: GraphBuilder, loop: Loop) -> Expansion:
    clip, vae = loop.parts["clip"], loop.parts["vae"]
    instruction = loop.rounds.instructions[-1]
    encoded = graph.node("OvisU1EditEncode", "encode", clip=clip, vae=vae, image=loop.best, prompt=instruction)
    sampled = graph.node(
        "OvisU1Sampler",
        "sample",
        model=loop.parts["model"],
        positive=encoded.out(0),
        image_only=encoded.out(1),
        negative=encoded.out(2),
        latent=encoded.out(3),
        seed=seed_of(loop.seed, loop.rounds),
        sampler_name="euler",
        scheduler=SCHEDULER,
        denoise=1.0,
        **loop.sampler,
    )
    decoded = graph.node("OvisU1Decode", "decode", samples=sampled.out(0), vae=vae, restore_size=True).out(0)
    return _then(graph, loop, score=_score(graph, loop, decoded), edit=decoded)


def _then(graph: GraphBuilder, loop: Loop, **results: Any) -> Expansion:
    following = graph.node(STEP, "step", loop=loop, **results)
    return Expansion((following.out(0),), graph.finalize())
