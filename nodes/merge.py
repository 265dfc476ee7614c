"""Merging two models."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.native.compat import search_aliases
from ..ovis_core.native.merging import blocks, merge
from ..ovis_core.weights.release import RELEASE
from .checks import checked
from .schema import CATEGORY

RATIO = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}


class OvisU1ModelMerge(io.ComfyNode):
    """Two MODELs -> one, block by block."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1ModelMerge",
            **search_aliases("model merge", "block merge"),
            display_name="Ovis-U1 Model Merge",
            category=CATEGORY,
            description=(
                "Mixes two Ovis-U1 diffusion models, with a ratio for each block. For one ratio in all blocks, use "
                "core's ModelMergeSimple. Save the result with ModelSave."
            ),
            inputs=[
                io.Model.Input("model1", tooltip="The first model. A block with ratio 1 is taken from it alone."),
                io.Model.Input("model2", tooltip="The second model. A block with ratio 0 is taken from it alone."),
                *(
                    io.Float.Input(
                        block, **RATIO, tooltip=f"Share of model1 in {block.rstrip('.')}; the rest is from model2."
                    )
                    for block in blocks(RELEASE.decoder)
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The mixed diffusion model.")],
        )

    @classmethod
    @checked
    def execute(cls, model1: Any, model2: Any, **ratios: float) -> io.NodeOutput:
        return io.NodeOutput(merge(model1, model2, ratios))
