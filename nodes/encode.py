"""Prompts to conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

import nodes

from ..ovis_core.native import conditions
from ..ovis_core.native.compat import growing_inputs, grown, search_aliases
from ..ovis_core.sizes import DEFAULT_BOUNDS, LATENT_FACTOR
from .checks import checked, need_batches_of, need_size
from .schema import CATEGORY, IMAGES, image_names

FURTHER = image_names(4)
SIDE_TIP = "{} of the image in pixels, a multiple of 16. Set the same value in Empty Latent Image."


class OvisU1TextEncode(io.ComfyNode):
    """Prompt -> positive and negative of text to image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 1024, "min": LATENT_FACTOR, "max": nodes.MAX_RESOLUTION, "step": LATENT_FACTOR}
        return io.Schema(
            node_id="OvisU1TextEncode",
            **search_aliases("text to image", "prompt", "clip text encode"),
            display_name="Ovis-U1 Text Encode",
            category=CATEGORY,
            description=(
                "Encodes a prompt for text to image. As in training, the prompt goes into the model's own template, "
                "with a blank image of the target size."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip=(
                        "The image to make, described in plain sentences. The text is taken literally: (word:1.2) and "
                        "<tags> have no special meaning."
                    ),
                ),
                io.Int.Input("width", **side, tooltip=SIDE_TIP.format("Width")),
                io.Int.Input("height", **side, tooltip=SIDE_TIP.format("Height")),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip=(
                        "Content to avoid in the image. If it is empty, the model's own prompt without a description "
                        "is used, as in training."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive", display_name="positive", tooltip="The encoded prompt, for a sampler."
                ),
                io.Conditioning.Output(
                    "negative", display_name="negative", tooltip="The encoded negative prompt, for a sampler."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip: Any, prompt: str, width: int, height: int, negative_prompt: str = "") -> io.NodeOutput:
        need_size(width=width, height=height)
        return io.NodeOutput(*conditions.text_to_image(clip, prompt, negative_prompt, width, height))


class OvisU1EditEncode(io.ComfyNode):
    """Image and instruction -> the three conditions and the latent of an edit."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1EditEncode",
            **search_aliases("edit image", "image editing", "instruction"),
            display_name="Ovis-U1 Edit Encode",
            category=CATEGORY,
            description=(
                "Encodes one or more images and an instruction for editing. Connect positive, image_only, negative and "
                "latent to Ovis-U1 Sampler. In a batch, each image is edited with the same instruction."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.Vae.Input("vae", tooltip="The VAE of Ovis-U1 Load Model."),
                io.Image.Input(
                    "image",
                    tooltip="The image to edit, of any size, or a batch of images. An alpha channel is ignored.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The change to make, as an instruction, for example: Make it night.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    optional=True,
                    tooltip=(
                        "Content to avoid in the edit. If it is empty, the model's own prompt without an instruction "
                        "is used."
                    ),
                ),
                io.Float.Input(
                    "megapixels",
                    default=0.0,
                    min=0.0,
                    max=16.0,
                    step=0.05,
                    optional=True,
                    tooltip=(
                        "Maximum size of the edited image, in units of 1024 x 1024 pixels. 0: the authors' limit, "
                        "0.957. A larger image is scaled down; Ovis-U1 Decode can restore its size."
                    ),
                ),
                *growing_inputs(
                    IMAGES,
                    io.Image.Input(
                        "image",
                        optional=True,
                        tooltip=(
                            "Another image for the edit, of any size, for example a person or a style. If image is a "
                            "batch, this can be a batch of the same length. In the prompt, call the first image Image "
                            "1, and the connected ones Image 2, Image 3 and so on, in order. The model was trained on "
                            "edits of a single image, so results with several vary. The first image sets the size of "
                            "the edit. Each additional image makes sampling slower."
                        ),
                    ),
                    FURTHER,
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "positive",
                    display_name="positive",
                    tooltip="The instruction, with the images as reference latents.",
                ),
                io.Conditioning.Output(
                    "image_only",
                    display_name="image_only",
                    tooltip="The images as reference latents, without the instruction.",
                ),
                io.Conditioning.Output(
                    "negative",
                    display_name="negative",
                    tooltip="The encoded negative prompt, without the images and the instruction.",
                ),
                io.Latent.Output(
                    "latent",
                    display_name="latent",
                    tooltip=(
                        "The encoded image, at the size of the edit. Connect it to the sampler; for an edit inside a "
                        "mask put Set Latent Noise Mask between them. It also stores the size of the source image for "
                        "restore_size."
                    ),
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip: Any,
        vae: Any,
        image: Any,
        prompt: str,
        negative_prompt: str = "",
        megapixels: float = 0.0,
        **more: Any,
    ) -> io.NodeOutput:
        further = grown(IMAGES, FURTHER, more)
        need_batches_of(len(image), further)
        limit = round(megapixels * 1024 * 1024) or DEFAULT_BOUNDS[1]
        return io.NodeOutput(*conditions.edit(clip, vae, image, prompt, negative_prompt, limit, [*further.values()]))
