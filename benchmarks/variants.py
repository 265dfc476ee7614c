"""The variants that are compared on one device: ours, ours with each speed feature, and other code."""

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
from native_pipeline import CFG, EDIT_CFG, IMAGE_CFG, PROMPT, ImageSpec, NativePipeline, noise_image
from ovis_core.weights.config import OvisConfig
from ovis_core.weights.layout import LANGUAGE

CACHE = {"reuse_threshold": 0.2, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}  # the nodes' defaults
INTERVAL = {"cfg_start": 0.1, "cfg_end": 0.7}
T = 0.7  # time (sigma) of a single pass
MAX_ERROR = {torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Variants:
    """The variants of a run.

    release    folder that `full_size.write_release` made
    reference  None, or a release's folder with the authors' code
    wanted     names of variants
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
        self.ours = NativePipeline(release)
        self.authors: Any = None
        if reference and self.wants("authors"):
            from reference import Reference

            self.authors = Reference(reference, release, dtype, device)
        self.fp8: NativePipeline | None = None
        if model_management.supports_fp8_compute(device) and self.wants("fp8"):
            self.fp8 = NativePipeline(release, "fp8_e4m3fn_fast")
        weights = {key: value for key, value in load_file(release / "model.safetensors").items() if LANGUAGE in key}
        self.language_bytes = sum(value.nbytes for value in weights.values())
        self.generate = Transformers(config.language, weights, device) if self.wants("generate") else None

    @property
    def with_weights(self) -> list[str]:
        """The variants that have their own copy of the weights."""
        return ["ours", *(["fp8"] if self.fp8 else []), *(["authors"] if self.authors else [])]

    def wants(self, variant: str) -> bool:
        """Whether a variant was asked for."""
        return variant in self.wanted

    def makers(self) -> dict[str, Callable[[ImageSpec], Any]]:
        """For each variant except the authors': a function from an image's spec to its pixels."""
        ours, model = self.ours, self.ours.model
        makers: dict[str, Callable[[ImageSpec], Any]] = {
            "ours": ours.image,
            "compiled": partial(ours.image, model=self.compiled()),
            "EasyCache": partial(ours.image, model=EasyCacheNode.execute(model, **CACHE)[0]),
            "LazyCache": partial(ours.image, model=LazyCacheNode.execute(model, **CACHE)[0]),
            "interval": partial(ours.image, **INTERVAL),
        }
        if self.fp8:
            makers["fp8"] = self.fp8.image
        return {variant: maker for variant, maker in makers.items() if self.wants(variant)}

    def compiled(self) -> Any:
        """The MODEL after ComfyUI's TorchCompileModel."""
        return TorchCompileModel.execute(self.ours.model, "inductor")[0]

    def picture(self, picture: ImageSpec) -> Any:
        """The pixels of an image by the authors' code."""
        if picture.edit:
            return self.authors.edit(PROMPT, noise_image(picture), picture.steps, EDIT_CFG, IMAGE_CFG)
        sizes = (picture.width, picture.height, picture.batch, picture.steps)
        return self.authors.text_to_image(PROMPT, *sizes, CFG)

    def answers(self, images: int, tokens: int) -> dict[str, Callable[[], Answer]]:
        """For each variant a function that answers about `images` images with `tokens` tokens."""
        variants: dict[str, Callable[[], Answer]] = {"ours": partial(answer, self.ours.clip, images, tokens)}
        if self.generate:
            variants["generate"] = partial(self.generate.answer, self.ours.clip, images, tokens)
        if self.authors:
            variants["authors"] = partial(self.authors.answer, images, tokens)
        return variants

    def only(self, variant: str | None) -> None:
        """Leaves only one variant on the device; None: loads all of them again."""
        model_management.unload_all_models()
        for name, model in (("authors", self.authors), ("generate", self.generate)):
            if model is not None:
                model.model.to(self.device if variant in (None, name) else "cpu")
        if variant != "authors":
            (self.fp8 if variant == "fp8" and self.fp8 else self.ours).load()

    def weights(self, variant: str) -> list[Tensor]:
        """The weights of a variant, on any device."""
        if variant == "authors":
            return self.authors.weights()
        own = (self.fp8 if variant == "fp8" and self.fp8 else self.ours).weights()
        return own + list(self.generate.model.parameters()) if variant == "generate" and self.generate else own

    def errors(self, tokens: int) -> dict[str, float]:
        """Differences between our results and the others' on the same inputs.

        For tensors the difference relative to their size, for answers of `tokens` tokens the fraction of tokens that
        differ. Exits if a difference is more than rounding, because the variants would not do the same work.
        """
        errors = self._tensor_errors() if self.authors else {}
        (_, ours), *others = self.answers(1, tokens).items()
        ours = ours().tokens
        for variant, other in others:
            differing = sum(a != b for a, b in zip(ours, other().tokens, strict=True))
            errors[f"answer about an image, compared with {variant}"] = differing / len(ours)
        for what, error in errors.items():
            # Rounding can change a token, and then all that follow.
            if not error <= MAX_ERROR[self.dtype] and not (what.startswith("answer") and self.dtype != torch.float32):
                raise SystemExit(
                    f"{what}: expected a difference of at most {MAX_ERROR[self.dtype]:.0e}, got {error:.1e}; find the "
                    "cause before you compare speeds."
                )
        return errors

    def _tensor_errors(self) -> dict[str, float]:
        picture = ImageSpec(256, 192)
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

    def noise(self, picture: ImageSpec) -> Tensor:
        """Latents in model space."""
        return torch.randn(picture.batch, 4, picture.height // 8, picture.width // 8).to(self.device)


def _error(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double().cpu(), theirs.double().cpu()
    return float((ours - theirs).norm() / theirs.norm())
