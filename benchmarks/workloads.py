"""The rows of the benchmark, from complete images to their parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from answering import Answer
from measuring import Workload
from variants import PROMPT, ImageSpec, T, Variants


def workloads(models: Variants, args: argparse.Namespace, copy: float) -> Iterator[Workload]:
    """All rows. copy: bytes per second of a copy."""
    ours, authors = models.ours, models.authors
    makers = models.makers()
    plain = {variant: makers[variant] for variant in ("ours", "compiled") if variant in makers}

    def made(picture: ImageSpec, makers: dict[str, Callable[[ImageSpec], Any]]) -> dict[str, Callable[[], Any]]:
        everyone = {**makers, "authors": models.picture} if authors else makers
        return {variant: partial(maker, picture) for variant, maker in everyone.items()}

    smallest = args.sizes[0]
    for width, height in args.sizes:
        one = ImageSpec(width, height, steps=args.steps)
        growth = {"steps": float(args.steps), "batch": 1.0} if (width, height) == smallest else {}
        growth["pixels"] = float(width * height)
        yield Workload(f"text to image, {width}x{height}", made(one, makers), growth)
        many = ImageSpec(width, height, batch=args.batch, steps=args.steps)
        growth = {"batch": float(many.batch)} if (width, height) == smallest else {}
        yield Workload(f"text to image, {width}x{height}, batch {many.batch}", made(many, plain), growth)
    twice = ImageSpec(*smallest, steps=2 * args.steps)
    growth = {"steps": float(twice.steps)}
    yield Workload(f"text to image, {twice.width}x{twice.height}, {twice.steps} steps", made(twice, plain), growth)
    side = args.edit_side
    yield Workload(f"edit, {side}x{side}", made(ImageSpec(side, side, steps=args.steps, edit=True), makers))

    for size in args.sizes:
        yield _pass(models, ImageSpec(*size))

    middle = ImageSpec(*args.sizes[len(args.sizes) // 2])
    name = f"{middle.width}x{middle.height}"
    variants: dict[str, Callable[[], Any]] = {"ours": lambda: ours.conditions(middle)}
    if authors:
        variants["authors"] = lambda: authors.conditions(PROMPT, middle.width, middle.height)
    yield Workload(f"both conditions of a text to image, {name}", variants, memory=False)
    latent, pixels = models.noise(middle).cpu(), torch.rand(1, middle.height, middle.width, 3)
    variants = {"ours": lambda: ours.vae.decode(latent)}
    if authors:
        variants["authors"] = lambda: authors.decode(latent)
    yield Workload(f"VAE decode, {name}", variants, memory=False)
    variants = {"ours": lambda: ours.vae.encode(pixels)}
    if authors:
        variants["authors"] = lambda: authors.encode(pixels.movedim(-1, 1))
    yield Workload(f"VAE encode, {name}", variants, memory=False)

    for images in (1, 4):
        answers = {variant: partial(_times, run) for variant, run in models.answers(images, args.tokens).items()}
        # A copy reads and writes, so reading alone takes half of its time.
        floors = (None, models.language_bytes / copy)
        name = f"about {images} image{'s' * (images > 1)}"
        yield Workload(name, answers, parts=("first token", "a token"), floors=floors)


def _pass(models: Variants, picture: ImageSpec) -> Workload:
    """One pass of the decoder with refined conditions; the authors' code refines in each pass."""
    condition = models.ours.conditions(picture)[0][0][0].to(models.device)
    x = models.noise(picture)
    models.ours.load()
    run = models.ours.decoder_pass(x, T, condition)
    variants: dict[str, Callable[[], Any]] = {"ours": run}
    if models.wants("compiled"):
        variants["compiled"] = partial(run, models.compiled())
    if models.fp8:
        models.fp8.load()
        variants["fp8"] = models.fp8.decoder_pass(x, T, condition)
    if models.authors:
        variants["authors"] = partial(models.authors.velocity, x.to(models.dtype), T, condition.to(models.dtype))
    tokens = condition.shape[1] + x.shape[2] * x.shape[3] // 4
    return Workload(
        f"one pass, {picture.width}x{picture.height}", variants, {"tokens of a pass": float(tokens)}, memory=False
    )


def _times(run: Callable[[], Answer]) -> tuple[float, float]:
    """(seconds to the first token, seconds per token after it)."""
    found = run()
    return found.first, found.each
