"""The models that take part in a run, all on one device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from comfy import model_management
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_torch_compile import TorchCompileModel
from safetensors.torch import load_file
from torch import Tensor

from answering import Answer, Transformers, answer
from ovis_core.weights.config import OvisConfig
from ovis_core.weights.layout import LANGUAGE
from sides import CFG, EDIT_CFG, IMAGE_CFG, PROMPT, Ours, Picture, noise_image

CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}  # the nodes' defaults
INTERVAL = {"cfg_start": 0.1, "cfg_end": 0.7}
T = 0.7  # of a single pass
MOST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Bench:
    """All sides.

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
        self.ours = Ours(release)
        self.authors: Any = None
        if reference and self.wants("authors"):
            from reference import Reference

            self.authors = Reference(reference, release, dtype, device)
        self.fp8: Ours | None = None
        if model_management.supports_fp8_compute(device) and self.wants("fp8"):
            self.fp8 = Ours(release, "fp8_e4m3fn_fast")
        weights = {key: value for key, value in load_file(release / "model.safetensors").items() if LANGUAGE in key}
        self.language_bytes = sum(value.nbytes for value in weights.values())
        self.generate = Transformers(config.language, weights, device) if self.wants("generate") else None

    @property
    def sides(self) -> list[str]:
        """Those with weights of their own."""
        return ["ours", *(["fp8"] if self.fp8 else []), *(["authors"] if self.authors else [])]

    def wants(self, side: str) -> bool:
        """Whether a side was asked for."""
        return side in self.wanted

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

    def answers(self, images: int, tokens: int) -> dict[str, Callable[[], Answer]]:
        """Each side's answer about so many images, of so many tokens."""
        sides: dict[str, Callable[[], Answer]] = {"ours": partial(answer, self.ours.clip, images, tokens)}
        if self.generate:
            sides["generate"] = partial(self.generate.answer, self.ours.clip, images, tokens)
        if self.authors:
            sides["authors"] = partial(self.authors.answer, images, tokens)
        return sides

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
            return self.authors.weights()
        own = (self.fp8 if side == "fp8" and self.fp8 else self.ours).weights()
        return own + list(self.generate.model.parameters()) if side == "generate" and self.generate else own

    def errors(self, tokens: int) -> dict[str, float]:
        """How far our results are from the others' on the same inputs.

        Of tensors the difference in parts of their size, of answers of `tokens` tokens the part of them that differs.
        Exits where it is more than rounding does: the sides would not do the same work.
        """
        errors = self._tensor_errors() if self.authors else {}
        (_, ours), *others = self.answers(1, tokens).items()
        ours = ours().tokens
        for side, other in others:
            differing = sum(a != b for a, b in zip(ours, other().tokens, strict=True))
            errors[f"answer about an image, beside {side}"] = differing / len(ours)
        for what, error in errors.items():
            # Rounding may turn one token into another, and then all that follow.
            if not error <= MOST_ERROR[self.dtype] and not (what.startswith("answer") and self.dtype != torch.float32):
                raise SystemExit(f"--reference: {what} is off by {error:.1e}; the sides do other work.")
        return errors

    def _tensor_errors(self) -> dict[str, float]:
        picture = Picture(256, 192)
        condition = self.ours.conditions(picture)[0][0][0].to(self.device)
        x, reference = self.noise(picture), self.noise(picture)
        self.ours.load()
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
        return {what: _error(*pair) for what, pair in pairs.items()}

    def noise(self, picture: Picture) -> Tensor:
        """Latents in model space."""
        return torch.randn(picture.batch, 4, picture.height // 8, picture.width // 8).to(self.device)


def _error(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float((ours - theirs).norm() / theirs.norm())
