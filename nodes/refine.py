"""The token refiner as a separate node."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.native.refining import refine
from .checks import checked
from .schema import CATEGORY, found_by


class OvisU1Refine(io.ComfyNode):
    """Conditioning -> refined conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Refine",
            **found_by("token refiner", "conditioning"),
            display_name="Ovis-U1 Refine Conditioning",
            category=CATEGORY,
            description=(
                "Runs the model's token refiner now, instead of at the start of sampling. The result is what the "
                "decoder attends to, so it can be kept, saved, averaged or combined. Refining twice changes nothing."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Ovis-U1 Load Model, with the LoRAs you sample with."),
                io.Conditioning.Input(
                    "conditioning", tooltip="From Ovis-U1 Text Encode, Ovis-U1 Edit Encode or CLIP Text Encode."
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "refined",
                    display_name="conditioning",
                    tooltip="Refined tokens; the pooled output is the vector that joins the time embedding.",
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, conditioning: Any) -> io.NodeOutput:
        return io.NodeOutput(refine(model, conditioning))
