"""The token refiner as a separate node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.native.compat import search_aliases
from ..ovis_core.native.refining import refine
from .checks import checked
from .schema import CATEGORY


class OvisU1Refine(io.ComfyNode):
    """Conditioning -> refined conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Refine",
            **search_aliases("token refiner", "conditioning"),
            display_name="Ovis-U1 Refine Conditioning",
            category=CATEGORY,
            description=(
                "Runs the token refiner, the part of the MODEL that prepares an encoded prompt for the transformer "
                "blocks. The node is optional: without it, the sampler runs the refiner. Use it to average, combine or "
                "save refined conditioning. Conditioning that is already refined is returned unchanged."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL that you sample with, including its LoRAs."),
                io.Conditioning.Input(
                    "conditioning", tooltip="From Ovis-U1 Text Encode, Ovis-U1 Edit Encode or CLIP Text Encode."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "refined",
                    display_name="conditioning",
                    tooltip="The refined conditioning, for a sampler or a node that combines conditioning.",
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, conditioning: Any) -> io.NodeOutput:
        return io.NodeOutput(refine(model, conditioning))
