"""Core's conditioning nodes, before the refiner and after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from comfy_prompt import PromptFailed

from .table import HEIGHT, OTHER, PROMPT, WIDTH, Bench, Lab, other, row, same

AREA = "conditioning"
Link = list[Any]


def both(feature: str, what: str) -> Callable[[Callable[[Lab, Bench, Link, Link], object]], object]:
    """A row that runs with two unrefined conditionings, and with both refined."""

    def register(check: Callable[[Lab, Bench, Link, Link], object]) -> object:
        def run(lab: Lab) -> None:
            for refine in (False, True):
                bench = lab.bench()
                one, two = bench.positive, bench.encode(OTHER)[0]
                if refine:
                    one, two = bench.refined(one), bench.refined(two)
                check(lab, bench, one, two)

        row(AREA, feature, f"{what}; before and after OvisU1Refine")(run)
        return check

    return register


@both(
    "ConditioningCombine", "two prompts give an image that differs from both; a prompt with itself gives its own image"
)
def combine(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    pair = bench.node("ConditioningCombine", conditioning_1=one, conditioning_2=two)
    twice = bench.node("ConditioningCombine", conditioning_1=one, conditioning_2=one)
    first, second, mixed, alike = bench.run(*(bench.ksampler(positive=p) for p in (one, two, pair, twice)))
    same(first, lab.plain())
    same(alike, first)
    other(mixed, first)
    other(mixed, second)


@both("ConditioningAverage", "strength 1 gives the first prompt's image, strength 0.5 another image")
def average(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    def blend(strength: float) -> Link:
        links = {"conditioning_to": one, "conditioning_from": two}
        return bench.node("ConditioningAverage", **links, conditioning_to_strength=strength)

    first, half = bench.run(*(bench.ksampler(positive=blend(strength)) for strength in (1.0, 0.5)))
    same(first, lab.plain())
    other(half, first)


@both("ConditioningConcat", "takes both prompts into account")
def concat(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    joined = bench.node("ConditioningConcat", conditioning_to=one, conditioning_from=two)
    first, second = bench.run(bench.ksampler(positive=joined), bench.ksampler(positive=two))
    other(first, lab.plain())
    other(first, second)


@both("ConditioningSetArea", "another prompt on the right does not change the left")
def area(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    right = bench.node("ConditioningSetArea", conditioning=two, width=64, height=HEIGHT, x=32, y=0, strength=1.0)
    whole = bench.node("ConditioningSetArea", conditioning=one, width=WIDTH, height=HEIGHT, x=0, y=0, strength=1.0)
    pair = bench.node("ConditioningCombine", conditioning_1=one, conditioning_2=right)
    # One step: the right has not influenced the left yet.
    plain, mixed, alike = bench.run(*(bench.ksampler(positive=p, steps=1, cfg=1.0) for p in (one, pair, whole)))
    same(alike, plain)
    same(mixed[..., :4], plain[..., :4])
    other(mixed[..., 4:], plain[..., 4:])


@both("ConditioningSetMask", "another prompt in the right half does not change the left")
def mask(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    black, white = (bench.node("SolidMask", value=value, width=WIDTH, height=HEIGHT) for value in (0.0, 1.0))
    half = bench.node("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)
    right = bench.node("MaskComposite", destination=black, source=half, x=WIDTH // 2, y=0, operation="add")
    left = bench.node("MaskComposite", destination=white, source=half, x=WIDTH // 2, y=0, operation="subtract")

    def masked(conditioning: Link, where: Link) -> Link:
        area = {"strength": 1.0, "set_cond_area": "default"}
        return bench.node("ConditioningSetMask", conditioning=conditioning, mask=where, **area)

    pair = bench.node("ConditioningCombine", conditioning_1=masked(one, left), conditioning_2=masked(two, right))
    links = (one, two, pair)
    first, second, mixed = bench.run(*(bench.ksampler(positive=p, steps=1, cfg=1.0) for p in links))
    middle = WIDTH // 16
    same(mixed[..., :middle], first[..., :middle])
    same(mixed[..., middle:], second[..., middle:])


@both(
    "ConditioningSetTimestepRange",
    "two prompts in sequence differ from each alone; the whole range does not change the result",
)
def timestep_range(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    def between(conditioning: Link, start: float, end: float) -> Link:
        return bench.node("ConditioningSetTimestepRange", conditioning=conditioning, start=start, end=end)

    pair = bench.node(
        "ConditioningCombine", conditioning_1=between(one, 0.0, 0.3), conditioning_2=between(two, 0.3, 1.0)
    )
    links = (between(one, 0.0, 1.0), two, pair)
    first, second, mixed = bench.run(*(bench.ksampler(positive=p) for p in links))
    same(first, lab.plain())
    other(mixed, first)
    other(mixed, second, 1e-4)


@both("ConditioningZeroOut", "the result does not depend on the prompt")
def zero_out(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    zeros = [bench.node("ConditioningZeroOut", conditioning=one) for _ in range(2)]
    zeros.append(bench.node("ConditioningZeroOut", conditioning=bench.encode("a red fox in the mud")[0]))
    first, again = bench.run(*(bench.ksampler(positive=p, cfg=1.0) for p in zeros[:2]))
    same(first, again)
    other(first, bench.sampled(bench.ksampler(positive=one, cfg=1.0)))


@both("ReferenceLatent", "the result depends on the reference image")
def reference(lab: Lab, bench: Bench, one: Link, two: Link) -> None:
    def with_image(color: int) -> Link:
        image = bench.node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=color)
        latent = bench.node("VAEEncode", pixels=image, vae=bench.vae)
        return bench.node("ReferenceLatent", conditioning=one, latent=latent)

    red, blue = bench.run(*(bench.ksampler(positive=with_image(color)) for color in (0xFF0000, 0x0000FF)))
    other(red, lab.plain())
    other(blue, red)


def encoder(node: str, prompts: tuple[str, ...]) -> None:
    """A row for a node that fills the several text encoders of another model."""

    @row(
        AREA,
        node,
        "with one prompt in every input the same as CLIPTextEncode; with two prompts an error names the node to use",
    )
    def check(lab: Lab) -> None:
        bench = lab.bench()
        plain = bench.node("CLIPTextEncode", clip=bench.clip, text=PROMPT)
        given = bench.node(node, clip=bench.clip, **dict.fromkeys(prompts, PROMPT))
        one, two = bench.run(*(bench.ksampler(positive=positive) for positive in (plain, given)))
        same(two, one)
        bench = lab.bench()
        mixed = bench.node(node, clip=bench.clip, **{**dict.fromkeys(prompts, PROMPT), prompts[0]: OTHER})
        bench.save_latent(bench.ksampler(positive=mixed), "features")
        with pytest.raises(PromptFailed, match=r"different prompts.*use Ovis-U1 Text Encode"):
            bench.execute()


encoder("CLIPTextEncodeFlux", ("clip_l", "t5xxl"))
encoder("CLIPTextEncodeSD3", ("clip_l", "clip_g", "t5xxl"))
encoder("CLIPTextEncodeSDXL", ("text_g", "text_l"))
encoder("CLIPTextEncodeHiDream", ("clip_l", "clip_g", "t5xxl", "llama"))
