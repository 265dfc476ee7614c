"""Latents to images."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.native.compat import search_aliases
from ..ovis_core.native.edit_latent import decode
from .checks import checked
from .schema import CATEGORY


class OvisU1Decode(io.ComfyNode):
    """Latent -> IMAGE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Decode",
            **search_aliases("vae decode"),
            display_name="Ovis-U1 Decode",
            category=CATEGORY,
            description=(
                "Decodes latents to images, in tiles if memory is short. If an edit has a mask, the image outside the "
                "mask is the source image, encoded and decoded by the VAE."
            ),
            inputs=[
                io.Latent.Input("samples", tooltip="From Ovis-U1 Sampler or any other sampler."),
                io.Vae.Input("vae", tooltip="The VAE of Ovis-U1 Load Model, or any SDXL VAE."),
                io.Boolean.Input(
                    "restore_size",
                    default=False,
                    optional=True,
                    tooltip=(
                        "For edits: resizes the result to the exact width and height of the source image. Leave it off "
                        "for text to image."
                    ),
                ),
            ],
            outputs=[io.Image.Output("image", display_name="image", tooltip="One image for each latent of the batch.")],
        )

    @classmethod
    @checked
    def execute(cls, samples: dict[str, Any], vae: Any, restore_size: bool = False) -> io.NodeOutput:
        return io.NodeOutput(decode(vae, samples, restore_size))
