"""The models that take part in a run, and the work that they do."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy import model_management
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_torch_compile import TorchCompileModel
from safetensors.torch import load_file
from torch import Tensor

from measuring import Row
from ovis_core.config import OvisConfig
from ovis_core.layout import LANGUAGE
from sides import CFG, EDIT_CFG, IMAGE_CFG, PROMPT, Ours, Picture, noise_image
from understand import Transformers, answering, now

CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}  # the nodes' defaults
INTERVAL = {"cfg_start": 0.1, "cfg_end": 0.7}
T = 0.7  # of a single pass
MOST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Bench:
    """All sides on one device.

    release    folder that `full_size.write_release` made
    reference  None, or a release's folder with the authors' code
    wanted     names of sides
    """

    def __init__(
        self,
        config: OvisConfig,
        release: Path,
        dtype: torch.dtype,
        device: torch.device,
        reference: Path | None,
        wanted: list[str],
    ) -> None:
        self.dtype, self.device, self.wanted = dtype, device, wanted
        self.loading: dict[str, float] = {}
        self.ours: Ours = self._loaded("ours", partial(Ours, release))
        self.authors: Any = None
        if reference and self.wants("authors"):
            from reference import Reference

            self.authors = self._loaded("authors", partial(Reference, reference, release, dtype, device))
        self.fp8: Ours | None = None
        if model_management.supports_fp8_compute(device) and self.wants("fp8"):
            self.fp8 = self._loaded("fp8", partial(Ours, release, "fp8_e4m3fn_fast"))
        weights = {key: value for key, value in load_file(release / "model.safetensors").items() if LANGUAGE in key}
        self.language_bytes = sum(value.nbytes for value in weights.values())
        self.generate = Transformers(config.language, weights, device) if self.wants("generate") else None

    def wants(self, side: str) -> bool:
        """Whether a side was asked for."""
        return side in self.wanted

    def _loaded(self, side: str, make: Callable[[], Any]) -> Any:
        gc.collect()
        start = now()
        made = make()
        self.loading[side] = now() - start
        return made

    def makers(self) -> dict[str, Callable[[Picture], Any]]:
        """Each side's way from prompt to pixels, the authors' aside."""
        ours, model = self.ours, self.ours.model
        makers: dict[str, Callable[[Picture], Any]] = {
            "ours": ours.image,
            "compiled": partial(ours.image, model=self.compiled()),
            "EasyCache": partial(ours.image, model=EasyCacheNode.execute(model, **CACHE)[0]),
            "LazyCache": partial(ours.image, model=LazyCacheNode.execute(model, **CACHE)[0]),
            "interval": partial(ours.image, **INTERVAL),
        }
        if self.fp8:
            makers["fp8"] = self.fp8.image
        return {side: maker for side, maker in makers.items() if self.wants(side)}

    def compiled(self) -> Any:
        """MODEL through ComfyUI's TorchCompileModel."""
        return TorchCompileModel.execute(self.ours.model, "inductor")[0]

    def picture(self, picture: Picture) -> Any:
        """The authors' way from prompt to pixels."""
        if picture.edit:
            return self.authors.edit(PROMPT, noise_image(picture), picture.steps, EDIT_CFG, IMAGE_CFG)
        sizes = (picture.width, picture.height, picture.batch, picture.steps)
        return self.authors.text_to_image(PROMPT, *sizes, CFG)

    def only(self, side: str | None) -> None:
        """Leaves the device to one side; None: back to all of them."""
        model_management.unload_all_models()
        for name, model in (("authors", self.authors), ("generate", self.generate)):
            if model is not None:
                model.model.to(self.device if side in (None, name) else "cpu")
        if side != "authors":
            (self.fp8 if side == "fp8" and self.fp8 else self.ours).load()

    def weights(self, side: str) -> list[Tensor]:
        """Of a side, wherever they are."""
        if side == "authors":
            return [*self.authors.model.parameters(), *self.authors.model.buffers()]
        own = (self.fp8 if side == "fp8" and self.fp8 else self.ours).parameters()
        return own + list(self.generate.model.parameters()) if side == "generate" and self.generate else own

    def errors(self) -> dict[str, float]:
        """How far our results are from the authors' on the same inputs, in parts of their size.

        Exits where it is further than rounding: the sides would not do the same work.
        """
        if not self.authors:
            return {}
        picture = Picture(256, 192)
        condition = self.ours.conditions(picture)[0][0][0].to(self.device)
        x, reference = self.noise(picture), self.noise(picture)
        ours = self.ours.decoder_pass(x, T, condition)
        theirs = partial(self.authors.velocity, x.to(self.dtype), T, condition.to(self.dtype))
        pixels = torch.rand(1, 3, 256, 192)
        pairs = {
            "condition": (condition, self.authors.conditions(PROMPT, 256, 192)[0]),
            "pass of text to image": (ours(), theirs()),
            "pass of edit": (ours(reference=reference), theirs(reference.to(self.dtype))),
            "VAE decode": (
                self.ours.vae.decode(x.cpu()).movedim(-1, 1),
                self.authors.decode(x).add(1).div(2).clamp(0, 1),
            ),
            "VAE encode": (self.ours.vae.encode(pixels.movedim(1, -1)), self.authors.encode(pixels * 2 - 1)),
        }
        errors = {what: _error(*pair) for what, pair in pairs.items()}
        for what, error in errors.items():
            if not error <= MOST_ERROR[self.dtype]:
                raise SystemExit(f"--reference: {what} is off by {error:.1e} of its size; the sides do other work.")
        return errors

    def noise(self, picture: Picture) -> Tensor:
        """Latents in model space."""
        return torch.randn(picture.batch, 4, picture.height // 8, picture.width // 8).to(self.device)


def rows(bench: Bench, args: argparse.Namespace, copy: float) -> Iterator[Row]:
    """The work, from the whole to its parts. copy: bytes a second."""
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
        answers = {
            side: partial(_answer, answer, images)
            for side, answer in answering(ours.clip, bench.generate, authors, args.tokens).items()
        }
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


def _answer(answer: Callable[[int], tuple[int, float, float, list[int]]], images: int) -> tuple[float, float]:
    """(seconds to the first token, seconds a token after it)."""
    _, first, speed, _ = answer(images)
    return first, 1 / speed


def _error(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float((ours - theirs).norm() / theirs.norm())


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
