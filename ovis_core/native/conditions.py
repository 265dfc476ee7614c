"""Prompts and pictures -> the CONDITIONING of each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sd
import node_helpers
import torch
from torch import Tensor

from .. import prompts
from ..pixels import VisualInput, resize, to_pil, to_tensor
from ..sizes import DEFAULT_BOUNDS, edit_target_size

Conditioning = list[list[Any]]

SOURCE = "ovis_u1_source"  # key of an `EditSource` in an edit's LATENT


@dataclass(frozen=True)
class EditSource:
    """What an edit's LATENT remembers of the image: its own size in pixels, and its latents at the edit's size."""

    height: int
    width: int
    samples: Tensor


def text_to_image(
    clip: comfy.sd.CLIP, prompt: str, negative_prompt: str, width: int, height: int
) -> tuple[Conditioning, Conditioning]:
    """Positive and negative for an image of width x height pixels.

    An empty negative prompt is the model's own prompt without text; another one takes the positive's template.
    """
    blank = [clip.tokenizer.blank(height, width)]
    negative = prompts.text_to_image(negative_prompt) if negative_prompt.strip() else prompts.unconditional()
    with _seeing_once(clip):
        return _encode(clip, prompts.text_to_image(prompt), blank), _encode(clip, negative, blank)


def edit(
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    images: Tensor,
    prompt: str,
    negative_prompt: str = "",
    max_pixels: int = DEFAULT_BOUNDS[1],
) -> tuple[Conditioning, Conditioning, Conditioning, dict[str, Any]]:
    """Positive, image-only, negative and the sources' LATENT for edits of images (B, H, W, C), 0 to 1.

    Each image is stretched to the edit's size; positive and image-only carry it as `reference_latents`. A negative
    prompt takes the place of the model's own text without an instruction; its picture is a blank of the edit's size.
    """
    source_height, source_width = images.shape[1:3]
    height, width = edit_target_size(source_height, source_width, max_pixels)
    sources = [resize(to_pil(image), height, width) for image in images]
    seen = [clip.tokenizer.source(source) for source in sources]
    negative_text = negative_prompt if negative_prompt.strip() else prompts.UNCONDITIONAL
    with _seeing_once(clip):
        positive = _encode(clip, prompts.about_image(prompt), seen)
        image_only = _encode(clip, prompts.unconditional(), seen)
        negative = _encode(clip, prompts.about_image(negative_text), [clip.tokenizer.blank(height, width)])
    latent = vae.encode(torch.stack([to_tensor(source) for source in sources]))
    reference = {"reference_latents": [latent]}
    return (
        node_helpers.conditioning_set_values(positive, reference, append=True),
        node_helpers.conditioning_set_values(image_only, reference, append=True),
        negative,
        {"samples": latent, SOURCE: EditSource(source_height, source_width, latent)},
    )


def _encode(clip: comfy.sd.CLIP, parts: list[prompts.Part], pictures: Sequence[VisualInput]) -> Conditioning:
    tokens = clip.tokenizer.tokenize_parts(parts, pictures)
    # Older ComfyUIs load a CLIP without asking how much memory its work will take.
    memory = clip.cond_stage_model.memory_estimation_function(tokens)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=memory)
    return clip.encode_from_tokens_scheduled(tokens)


@contextmanager
def _seeing_once(clip: comfy.sd.CLIP) -> Iterator[None]:
    # Scheduled hooks change the weights from one encoding of a prompt to the next.
    with clip.cond_stage_model.seeing_once() if clip.patcher.forced_hooks is None else nullcontext():
        yield
