"""Prompts and images -> the CONDITIONING of each task, and the LATENT of an edit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import comfy.model_management
import comfy.sd
import node_helpers
import torch
from PIL import Image
from torch import Tensor

from ..pixels import VisualInput, blank_input, condition_input, resize, to_pil, to_tensor
from ..sizes import DEFAULT_BOUNDS, edit_target_size
from ..text import prompts
from .edit_latent import SOURCE, EditSource
from .page.input_warnings import warn_of_empty_prompt

Conditioning = list[list[Any]]


def text_to_image(
    clip: comfy.sd.CLIP, prompt: str, negative_prompt: str, width: int, height: int
) -> tuple[Conditioning, Conditioning]:
    """Positive and negative for an image of width x height pixels.

    An empty negative prompt is the model's own prompt without text; any other is put into the positive's template.
    """
    warn_of_empty_prompt(prompt, "describe the image in it")
    blank = [[blank_input(height, width)]]
    negative = prompts.text_to_image(negative_prompt) if negative_prompt.strip() else prompts.unconditional()
    with _caching_images(clip):
        return _encode(clip, prompts.text_to_image(prompt), blank), _encode(clip, negative, blank)


def edit(
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    images: Tensor,
    prompt: str,
    negative_prompt: str = "",
    max_pixels: int = DEFAULT_BOUNDS[1],
    further: Sequence[Tensor] = (),
) -> tuple[Conditioning, Conditioning, Conditioning, dict[str, Any]]:
    """Positive, image-only, negative and the sources' LATENT for edits of images (B, H, W, C), 0 to 1.

    further  more images of each edit, Image 2, Image 3, ...: batches (1 or B, h, w, c) of any size

    size        the edit's size is that of `images`; every image is stretched to the size at which it would be edited
    positive    all images, in the prompt and as `reference_latents`, and the instruction
    image-only  all images in the same way, and the model's own prompt without an instruction
    negative    a blank image of the edit's size, and the negative prompt; if it is empty, the model's own prompt

    Several images are numbered as in a question about them. The model was trained on edits of one image.
    """
    warn_of_empty_prompt(prompt, "write in it what to change")
    source_height, source_width = images.shape[1:3]
    height, width = edit_target_size(source_height, source_width, max_pixels)
    sources = [_resized(images, max_pixels), *(_resized(batch, max_pixels) for batch in further)]
    inputs = _batch([[condition_input(source) for source in batch] for batch in sources])
    negative_text = negative_prompt if negative_prompt.strip() else prompts.UNCONDITIONAL
    with _caching_images(clip):
        positive = _encode(clip, prompts.about_image(prompt, len(sources)), inputs)
        image_only = _encode(clip, prompts.unconditional(len(sources)), inputs)
        negative = _encode(clip, prompts.about_image(negative_text), [[blank_input(height, width)]])
    latents = [vae.encode(torch.stack([to_tensor(source) for source in batch])) for batch in sources]
    references = {"reference_latents": latents}
    return (
        node_helpers.conditioning_set_values(positive, references, append=True),
        node_helpers.conditioning_set_values(image_only, references, append=True),
        negative,
        {"samples": latents[0], SOURCE: EditSource(source_height, source_width, latents[0])},
    )


def _resized(images: Tensor, max_pixels: int) -> list[Image.Image]:
    """Images (B, H, W, C), 0 to 1, at the size at which they are edited."""
    size = edit_target_size(*images.shape[1:3], max_pixels)
    return [resize(to_pil(image), *size) for image in images]


def _batch(inputs: Sequence[Sequence[VisualInput]]) -> list[list[VisualInput]]:
    """The images of each edit of a batch; a single further image is in every edit."""
    first, *further = inputs
    return [[image, *(batch[i % len(batch)] for batch in further)] for i, image in enumerate(first)]


def _encode(
    clip: comfy.sd.CLIP, parts: list[prompts.PromptPart], batch: Sequence[Sequence[VisualInput]]
) -> Conditioning:
    tokens = clip.tokenizer.tokenize_parts(parts, batch)
    # 0.3.75 loads a CLIP without asking how much memory the encoding will take.
    memory = clip.cond_stage_model.memory_estimation_function(tokens)
    comfy.model_management.load_models_gpu([clip.patcher], memory_required=memory)
    return clip.encode_from_tokens_scheduled(tokens)


@contextmanager
def _caching_images(clip: comfy.sd.CLIP) -> Iterator[None]:
    # Scheduled hooks change the weights from one encoding of a prompt to the next.
    with clip.cond_stage_model.caching_images() if clip.patcher.forced_hooks is None else nullcontext():
        yield
