"""The authors' own code, from a release's folder that the user names, on our weights.

It needs transformers 4.51 and flash-attn; if flash-attn is missing, torch's attention replaces it. `authors` runs the
Python files of that folder, which nothing else in this project does. Importing this file runs none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from answering import QUESTION, Answer, greedy, photos, time_generate
from clock import Clock, now
from ovis_core.text import prompts

PACKAGE = "ovis_u1_reference"


def authors(code: Path, name: str) -> Any:
    """Imports a module of the authors' code, with the modules that it imports from the folder `code`."""
    if not transformers.__version__.startswith("4.51."):
        raise SystemExit(
            f"--reference: expected transformers 4.51, which the authors' code needs, got {transformers.__version__}; "
            "install transformers 4.51.3."
        )
    package = sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE))
    package.__path__ = [str(code)]
    with _flash_attn():
        return importlib.import_module(f"{PACKAGE}.{name}")


class Reference:
    """The authors' model on `device`.

    code     a release's folder with their code
    release  a folder with weights, which their code reads
    """

    def __init__(self, code: Path, release: Path, dtype: torch.dtype, device: torch.device) -> None:
        module = authors(code, "modeling_ovis_u1")
        self.model = module.OvisU1.from_pretrained(release, torch_dtype=dtype).to(device)
        self.model.eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        # Their noise is always bfloat16, which fails with weights of another dtype.
        yak = authors(code, "modeling_yak")
        noise = yak.get_noise
        yak.get_noise = lambda *sizes, **named: noise(*sizes, **{**named, "dtype": dtype})

    def weights(self) -> list[Tensor]:
        """All weights, on any device."""
        return [*self.model.parameters(), *self.model.buffers()]

    def condition(self, text: str, image: Image.Image) -> Tensor:
        """(1, L, context_in_dim) for a prompt about an image, which has the target's size."""
        tokenizer = self.model.visual_tokenizer
        least = tokenizer.image_processor.min_pixels
        height, width = tokenizer.smart_resize(image.height, image.width, max_pixels=least)
        ids, inputs = self._inputs(f"<image>\n{text}", [image.resize((width, height))], generation_preface=None)
        return self.model.generate_condition(ids, **inputs)["txt"]

    def conditions(self, prompt: str, width: int, height: int) -> tuple[Tensor, Tensor]:
        """The conditions of text to image, with the prompt and without."""
        blank = Image.new("RGB", (width, height), (255, 255, 255))
        return self.condition(prompts.DESCRIBE + prompt, blank), self.condition(prompts.UNCONDITIONAL, blank)

    def text_to_image(self, prompt: str, width: int, height: int, batch: int, steps: int, cfg: float) -> Any:
        """Pixels (batch, height, width, 3), 0 to 255."""
        cond, uncond = (x.expand(batch, -1, -1) for x in self.conditions(prompt, width, height))
        return self._images({"txt": cond}, {"txt": uncond}, None, width, height, steps, txt_cfg=cfg)

    def edit(self, prompt: str, image: Image.Image, steps: int, txt_cfg: float, img_cfg: float) -> Any:
        """As `text_to_image`, for an image at the edit's size."""
        generator, size = self.model.visual_generator, image.size
        pixels = generator.process_image_aspectratio(image, size)[1][None].to(self.device)
        cond = {"txt": self.condition(prompt, image), "vae_pixel_values": pixels}
        image_only = {"txt": self.condition(prompts.UNCONDITIONAL, image)}
        uncond = {"txt": self.condition(prompts.UNCONDITIONAL, Image.new("RGB", size, (255, 255, 255)))}
        return self._images(cond, uncond, image_only, *size, steps, txt_cfg=txt_cfg, img_cfg=img_cfg)

    def _images(
        self, cond: Any, uncond: Any, image_only: Any, width: int, height: int, steps: int, **scales: float
    ) -> Any:
        return self.model.visual_generator.generate_image(
            cond, height, width, steps, 0, no_both_cond=uncond, no_txt_cond=image_only, output_type="np", **scales
        )

    def velocity(self, x: Tensor, t: float, condition: Tensor, reference: Tensor | None = None) -> Tensor:
        """One pass of the decoder, refiner included; latents (B, 4, H, W) in model space."""
        return velocity(self.model.visual_generator.backbone, x, t, condition, reference)

    def decode(self, latent: Tensor) -> Tensor:
        """Pixels (B, 3, H, W), -1 to 1, of latents as a VAE makes them."""
        return self.model.visual_generator.vae.decode(latent.to(self.device, self.dtype)).sample.float().cpu()

    def encode(self, pixels: Tensor) -> Tensor:
        """The mode of the posterior for pixels (B, 3, H, W), -1 to 1."""
        vae = self.model.visual_generator.vae
        return vae.encode(pixels.to(self.device, self.dtype)).latent_dist.mode().float().cpu()

    def answer(self, count: int, max_new_tokens: int) -> Answer:
        """As `answering.answer`."""
        images = photos(count)
        start = now()
        marks = "".join(f"Image {i + 1}: <image>\n" for i in range(count)) if count > 1 else "<image>\n"
        ids, inputs = self._inputs(marks + QUESTION, images)
        preprocessing = now() - start

        def generate(new: int, clock: Clock) -> Tensor:
            return self.model.generate(ids, streamer=clock, **inputs, **greedy(new))

        return time_generate(generate, preprocessing, max_new_tokens)

    def _inputs(self, text: str, images: list[Image.Image], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
        _, ids, pixels, grids = self.model.preprocess_inputs(text, images, **options)
        inputs = {
            "pixel_values": pixels.to(self.device, self.dtype),
            "grid_thws": grids.to(self.device),
            "attention_mask": torch.ones_like(ids)[None].to(self.device),
        }
        return ids[None].to(self.device), inputs


def velocity(decoder: Any, x: Tensor, t: float, condition: Tensor, reference: Tensor | None = None) -> Tensor:
    """One pass of the authors' decoder, as `Reference.velocity`."""
    batch, _, height, width = x.shape
    image, text = _packed(x), condition.expand(batch, -1, -1)
    named: dict[str, Any] = {}
    if reference is not None:
        named = {"cond_img": _packed(reference), "cond_img_ids": _ids(reference, 1.0)}
    out = decoder(
        img=image,
        img_ids=_ids(x, 0.0),
        txt=text,
        txt_ids=torch.zeros(batch, text.shape[1], 3, device=x.device),
        timesteps=torch.full((batch,), t, dtype=x.dtype, device=x.device),
        **named,
    )
    return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def _packed(x: Tensor) -> Tensor:
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def _ids(x: Tensor, index: float) -> Tensor:
    """(B, tokens, 3): index, row, column."""
    axes = [torch.tensor([index]), torch.arange(x.shape[-2] // 2), torch.arange(x.shape[-1] // 2)]
    grid = torch.cartesian_prod(*(axis.to(x.device, torch.float32) for axis in axes))
    return grid.expand(len(x), -1, -1)


@contextmanager
def _flash_attn() -> Iterator[None]:
    """A context in which flash-attn can be imported; its replacements are removed afterwards, because other libraries
    would use them.
    """
    if importlib.util.find_spec("flash_attn") is not None:
        yield
        return
    _ = diffusers.AutoencoderKL, transformers.CLIPImageProcessor  # they look for flash-attn when they are imported
    flash, layers, rotary = (types.ModuleType(f"flash_attn{name}") for name in ("", ".layers", ".layers.rotary"))
    flash.flash_attn_varlen_func = _attention
    rotary.apply_rotary_emb = _rotate
    stand_ins = {module.__name__: module for module in (flash, layers, rotary)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *lengths: Any) -> Tensor:
    """q, k, v (positions, heads, head) of concatenated sequences, which begin at `starts`."""
    sizes = starts.diff().tolist()
    parts = zip(*(x.transpose(0, 1).split(sizes, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=1).transpose(0, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, positions, heads, head); cos and sin (positions, head / 2)."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
