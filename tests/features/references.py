"""Edits of several images with core's nodes."""

from __future__ import annotations

from typing import Any

from .latents import half_is_kept, right_half
from .table import HEIGHT, STEPS, WIDTH, Bench, Lab, other, row, same

AREA = "edits of two images"
CACHE = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False}
Link = list[Any]


def image(bench: Bench, color: int, width: int = 64, height: int = 160) -> Link:
    return bench.node("EmptyImage", width=width, height=height, batch_size=1, color=color)


def two(bench: Bench, color: int = 0xFF0000) -> list[Link]:
    """The edit's conditions and latent, with a further image of another size."""
    return bench.edited(image_2=image(bench, color))


def sampled(bench: Bench, edited: list[Link], **inputs: Any) -> Link:
    return bench.edit_sampler(edited, 6.0, 1.5, **inputs)


@row(AREA, "OvisU1EditEncode", "the further image, and which of two comes first, change the edit, and not its size")
def order(lab: Lab) -> None:
    bench = lab.bench()
    red, blue = image(bench, 0xFF0000), image(bench, 0x0000FF, 96, 32)
    edits = [bench.edited(), bench.edited(image_2=red), bench.edited(image_2=blue)]
    edits += [bench.edited(image_2=red, image_3=blue), bench.edited(image_2=blue, image_3=red)]
    edits += [bench.edited(image_3=red)]  # the same as image_2
    one, first, second, both, turned, skipped = bench.run(*(sampled(bench, edit) for edit in edits))
    for latent in (first, second, both):
        other(latent, one)
    other(first, second)
    other(both, first)
    other(turned, both, 1e-4)
    same(skipped, first)


@row(AREA, "ReferenceLatent", "changes the edit as a further reference; the order of two of them counts")
def core_reference(lab: Lab) -> None:
    bench = lab.bench()
    positive, image_only, *rest = two(bench)
    latents = [bench.node("VAEEncode", pixels=image(bench, color), vae=bench.vae) for color in (0x00FF00, 0x0000FF)]

    def added(*order: Link) -> list[Link]:
        pair = [positive, image_only]
        for latent in order:
            pair = [bench.node("ReferenceLatent", conditioning=one, latent=latent) for one in pair]
        return [*pair, *rest]

    edits = [[positive, image_only, *rest], added(latents[0]), added(*latents), added(*latents[::-1])]
    plain, one, both, turned = bench.run(*(sampled(bench, edit) for edit in edits))
    other(one, plain)
    other(both, one)
    other(turned, both, 1e-4)


@row(AREA, "OvisU1Refine", "the refined conditions give the same edit")
def refine(lab: Lab) -> None:
    bench = lab.bench()
    *conds, latent = two(bench)
    plain, refined = bench.run(
        sampled(bench, [*conds, latent]), sampled(bench, [*(bench.refined(cond) for cond in conds), latent])
    )
    same(refined, plain)


@row(AREA, "ConditioningCombine", "an edit with itself gives its own image; with another further image a new one")
def combine(lab: Lab) -> None:
    bench = lab.bench()
    positive, *rest = two(bench)
    blue = two(bench, 0x0000FF)[0]
    one = bench.edited()[0]
    pairs = [
        bench.node("ConditioningCombine", conditioning_1=positive, conditioning_2=x) for x in (positive, blue, one)
    ]
    plain, alike, mixed, fewer = bench.run(*(sampled(bench, [p, *rest]) for p in (positive, *pairs)))
    same(alike, plain)
    other(mixed, plain)
    other(fewer, plain)


@row(AREA, "ConditioningSetArea", "another further image on the right does not change the left")
def area(lab: Lab) -> None:
    bench = lab.bench()
    positive, *rest = two(bench)
    blue = two(bench, 0x0000FF)[0]
    right = bench.node("ConditioningSetArea", conditioning=blue, width=64, height=HEIGHT, x=32, y=0, strength=1.0)
    pair = bench.node("ConditioningCombine", conditioning_1=positive, conditioning_2=right)
    # One step: the right has not influenced the left yet.
    plain, mixed = bench.run(*(sampled(bench, [p, *rest], steps=1) for p in (positive, pair)))
    same(mixed[..., :4], plain[..., :4])
    other(mixed[..., 4:], plain[..., 4:])


@row(AREA, "SetLatentNoiseMask", "outside the mask the first image stays as it is")
def noise_mask(lab: Lab) -> None:
    bench = lab.bench()
    *conds, latent = two(bench)
    masked = bench.node("SetLatentNoiseMask", samples=latent, mask=right_half(bench))
    half_is_kept(*bench.run(latent, sampled(bench, [*conds, masked])))


@row(AREA, "DualCFGGuider", "the same as OvisU1Sampler")
def dual(lab: Lab) -> None:
    bench = lab.bench()
    positive, image_only, negative, latent = edited = two(bench)
    conds = {"cond1": positive, "cond2": image_only, "negative": negative}
    scales = {"cfg_conds": 6.0, "cfg_cond2_negative": 1.5, "style": "regular"}
    size = {"base_shift": 0.5, "max_shift": 1.15, "width": WIDTH, "height": HEIGHT}
    shifted = bench.node("ModelSamplingFlux", model=bench.model, **size)
    guider = bench.node("DualCFGGuider", model=shifted, **conds, **scales)
    sigmas = bench.node("OvisU1Scheduler", model=bench.model, latent=latent, steps=STEPS, denoise=1.0)
    own, core = bench.run(
        sampled(bench, edited, scheduler="ovis_u1"), bench.custom(guider, sigmas, latent_image=latent)
    )
    same(core, own)


@row(AREA, "RescaleCFG", "changes the image; with neutral settings it does not")
def rescale(lab: Lab) -> None:
    bench = lab.bench()
    edited = two(bench)
    models = [bench.model, *(bench.node("RescaleCFG", model=bench.model, multiplier=x) for x in (0.0, 0.7))]
    plain, neutral, strong = bench.run(*(sampled(bench, edited, model=model) for model in models))
    same(neutral, plain)
    other(strong, plain)


def cache(node: str) -> None:
    """A row for a cache of the decoder's passes."""

    @row(AREA, node, "changes the image; with neutral settings it does not")
    def check(lab: Lab) -> None:
        bench = lab.bench()
        edited = two(bench)
        models = [bench.node(node, model=bench.model, reuse_threshold=x, **CACHE) for x in (0.0, 3.0)]
        links = (sampled(bench, edited, model=model, steps=8) for model in (bench.model, *models))
        plain, neutral, strong = bench.run(*links)
        same(neutral, plain)
        other(strong, plain, 1e-4)


cache("EasyCache")
cache("LazyCache")
