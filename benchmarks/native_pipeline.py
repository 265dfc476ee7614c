"""The pack's pipeline, as a workflow runs it, with the functions that the nodes call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ovis_core.native import conditions
from ovis_core.native.guider import OvisGuider
from ovis_core.native.loading import load
from ovis_core.native.sampling import sample
from ovis_core.pixels import to_tensor
from ovis_core.schedule import SCHEDULER
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.precision import PRECISIONS

PROMPT = "A cat in a red hat on a windowsill, rain behind the glass, oil on canvas."
CFG, EDIT_CFG, IMAGE_CFG = 5.0, 6.0, 1.5


@dataclass(frozen=True)
class ImageSpec:
    """The settings of an image.

    edit    whether it is an edit of an image of this size, not text to image
    source  the image to edit, (1, height, width, 3) in 0..1; None: noise
    """

    width: int
    height: int
    batch: int = 1
    steps: int = 50
    edit: bool = False
    source: Tensor | None = None
    prompt: str = PROMPT
    seed: int = 0
    sampler: str = "euler"
    scheduler: str = SCHEDULER


class NativePipeline:
    """MODEL, CLIP and VAE of a release's folder, loaded onto the device."""

    def __init__(self, release: Path, weight_dtype: str = "default") -> None:
        self.model, self.clip, self.vae = load(open_model(release), PRECISIONS[weight_dtype])
        self.load()

    def load(self) -> None:
        """Loads all three onto the device."""
        comfy.model_management.load_models_gpu([self.model, self.clip.patcher, self.vae.patcher])

    def weights(self) -> list[Tensor]:
        """All weights, on any device."""
        return [p for patcher in (self.model, self.clip.patcher, self.vae.patcher) for p in patcher.model.parameters()]

    def image(self, picture: ImageSpec, model: ModelPatcher | None = None, **guidance: float) -> Tensor:
        """Makes an image from a prompt: pixels (batch, height, width, 3)."""
        return self.vae.decode(self.latent(picture, model, **guidance)["samples"])

    def latent(self, picture: ImageSpec, model: ModelPatcher | None = None, **guidance: float) -> dict[str, Any]:
        """LATENT of a sampling run, conditions included; `guidance` is for `OvisGuider`."""
        model = model or self.model
        if picture.edit:
            images = to_tensor(noise_image(picture))[None] if picture.source is None else picture.source
            positive, image_only, negative, latent = conditions.edit(self.clip, self.vae, images, picture.prompt)
            scales = {"txt_cfg": EDIT_CFG, "img_cfg": IMAGE_CFG, **guidance}
            guider = OvisGuider(model, positive, negative, image_only=image_only, **scales)
        else:
            guider = OvisGuider(model, *self.conditions(picture), **{"txt_cfg": CFG, **guidance})
            latent = {"samples": torch.zeros(picture.batch, 4, picture.height // 8, picture.width // 8)}
        return sample(guider, latent, picture.seed, picture.sampler, picture.scheduler, picture.steps, 1.0)

    def conditions(self, picture: ImageSpec) -> tuple[Any, Any]:
        """The conditions of text to image, with the prompt and without."""
        return conditions.text_to_image(self.clip, picture.prompt, "", picture.width, picture.height)

    def decoder_pass(self, x: Tensor, t: float, condition: Tensor) -> Callable[..., Tensor]:
        """One pass for latents (B, 4, H, W) in model space: a function of a MODEL and a reference's latents.

        The condition is refined beforehand, like once per sampling run. The function returns the velocity.
        """
        context, y = self.model.model.refine(condition, x.device)

        def run(model: ModelPatcher | None = None, reference: Tensor | None = None) -> Tensor:
            model = model or self.model
            # Sampling passes a MODEL's wrappers, such as torch.compile's, to each pass.
            options = {**model.model_options["transformer_options"], "wrappers": model.wrappers}
            named = {} if reference is None else {"ref_latents": [reference]}
            time = torch.full((len(x),), t, device=x.device)
            image = model.model.apply_model(
                x, time, c_crossattn=context, y=y, transformer_options=options, **named
            )  # x0 = x - t v
            return (x - image) / t

        return run


def noise_image(picture: ImageSpec) -> Image.Image:
    """An image of noise."""
    pixels = torch.randint(0, 256, (picture.height, picture.width, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())
