"""The work that is measured, from the whole to its parts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from answering import Answer
from bench import Bench, T
from measuring import Row
from sides import PROMPT, Picture


def rows(bench: Bench, args: argparse.Namespace, copy: float) -> Iterator[Row]:
    """All of it. copy: bytes a second."""
    ours, authors = bench.ours, bench.authors
    makers = bench.makers()
    plain = {side: makers[side] for side in ("ours", "compiled") if side in makers}

    def made(picture: Picture, makers: dict[str, Callable[[Picture], Any]]) -> dict[str, Callable[[], Any]]:
        everyone = {**makers, "authors": bench.picture} if authors else makers
        return {side: partial(maker, picture) for side, maker in everyone.items()}

    smallest = args.sizes[0]
    for width, height in args.sizes:
        one = Picture(width, height, steps=args.steps)
        growth = {"steps": float(args.steps), "batch": 1.0} if (width, height) == smallest else {}
        growth["pixels"] = float(width * height)
        yield Row(f"text to image, {width}x{height}", made(one, makers), growth)
        many = Picture(width, height, batch=args.batch, steps=args.steps)
        growth = {"batch": float(many.batch)} if (width, height) == smallest else {}
        yield Row(f"text to image, {width}x{height}, batch {many.batch}", made(many, plain), growth)
    twice = Picture(*smallest, steps=2 * args.steps)
    yield Row(f"text to image, {_by(smallest)}, {twice.steps} steps", made(twice, plain), {"steps": float(twice.steps)})
    side = args.edit_side
    yield Row(f"edit, {side}x{side}", made(Picture(side, side, steps=args.steps, edit=True), makers))

    for size in args.sizes:
        yield _pass(bench, Picture(*size))

    middle = Picture(*args.sizes[len(args.sizes) // 2])
    name = f"{middle.width}x{middle.height}"
    sides: dict[str, Callable[[], Any]] = {"ours": lambda: ours.conditions(middle)}
    if authors:
        sides["authors"] = lambda: authors.conditions(PROMPT, middle.width, middle.height)
    yield Row(f"both conditions of a text to image, {name}", sides)
    latent, pixels = bench.noise(middle).cpu(), torch.rand(1, middle.height, middle.width, 3)
    sides = {"ours": lambda: ours.vae.decode(latent)}
    if authors:
        sides["authors"] = lambda: authors.decode(latent)
    yield Row(f"VAE decode, {name}", sides)
    sides = {"ours": lambda: ours.vae.encode(pixels)}
    if authors:
        sides["authors"] = lambda: authors.encode(pixels.movedim(-1, 1))
    yield Row(f"VAE encode, {name}", sides)

    for images in (1, 4):
        answers = {side: partial(_times, run) for side, run in bench.answers(images, args.tokens).items()}
        # Reading is half of a copy's traffic, at the same rate.
        floors = (None, bench.language_bytes / copy)
        yield Row(f"about {images} image{'s' * (images > 1)}", answers, parts=("first token", "a token"), floors=floors)


def _pass(bench: Bench, picture: Picture) -> Row:
    """One pass of the decoder, refined conditions given; the authors' refines in each pass."""
    condition = bench.ours.conditions(picture)[0][0][0].to(bench.device)
    x = bench.noise(picture)
    bench.ours.load()
    run = bench.ours.decoder_pass(x, T, condition)
    sides: dict[str, Callable[[], Any]] = {"ours": run}
    if bench.wants("compiled"):
        sides["compiled"] = partial(run, bench.compiled())
    if bench.fp8:
        bench.fp8.load()
        sides["fp8"] = bench.fp8.decoder_pass(x, T, condition)
    if bench.authors:
        sides["authors"] = partial(bench.authors.velocity, x.to(bench.dtype), T, condition.to(bench.dtype))
    tokens = condition.shape[1] + x.shape[2] * x.shape[3] // 4
    return Row(f"one pass, {picture.width}x{picture.height}", sides, {"tokens of a pass": float(tokens)})


def _times(run: Callable[[], Answer]) -> tuple[float, float]:
    """(seconds to the first token, seconds a token after it)."""
    found = run()
    return found.first, found.each


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
