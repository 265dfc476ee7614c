"""Prompts to conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

import nodes

from ..ovis_core.native.clip import encode
from ..ovis_core.sizes import LATENT_FACTOR
from .checks import CATEGORY, need_clip, need_size


class OvisU1TextEncode(io.ComfyNode):
    """Prompt -> positive and negative of text to image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows."""
        side = {"default": 1024, "min": LATENT_FACTOR, "max": nodes.MAX_RESOLUTION, "step": LATENT_FACTOR}
        return io.Schema(
            node_id="OvisU1TextEncode",
            display_name="Ovis-U1 Text Encode",
            category=CATEGORY,
            description=(
                "Encodes a prompt for text to image, as the model was trained: inside its own description prompt, "
                "together with a blank picture of the size to be made."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Ovis-U1 Load Model."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="What to paint, in plain sentences. Taken literally: (word:1.2) and <tags> are just text.",
                ),
                io.Int.Input("width", **side, tooltip="Width in pixels of the image to be made, a multiple of 16."),
                io.Int.Input("height", **side, tooltip="Height in pixels of the image to be made, a multiple of 16."),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip=(
                        "What to stay away from. Empty: the model's own prompt without text, which it was trained "
                        "to be guided against."
                    ),
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output("negative", display_name="negative", tooltip="What guidance leads away from."),
            ],
        )

    @classmethod
    def execute(cls, clip: Any, prompt: str, width: int, height: int, negative_prompt: str = "") -> io.NodeOutput:
        """Encodes."""
        need_clip(clip)
        need_size(width=width, height=height)
        positive = encode(clip, prompt, width, height)
        negative = encode(clip, negative_prompt, width, height, unconditional=not negative_prompt.strip())
        return io.NodeOutput(positive, negative)
