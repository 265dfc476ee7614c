"""Two models to one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..ovis_core.native.merging import blocks, merge
from ..ovis_core.weights.release import RELEASE
from .checks import check
from .schema import CATEGORY, found_by

RATIO = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}


class OvisU1ModelMerge(io.ComfyNode):
    """Two MODELs -> one, block by block."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1ModelMerge",
            **found_by("model merge", "block merge"),
            display_name="Ovis-U1 Model Merge",
            category=CATEGORY,
            description=(
                "Mixes two Ovis-U1 decoders, each block by a ratio of its own. For one ratio for all, core's "
                "ModelMergeSimple does. Save the result with ModelSave."
            ),
            inputs=[
                io.Model.Input("model1", tooltip="What a ratio of 1 takes."),
                io.Model.Input("model2", tooltip="What a ratio of 0 takes."),
                *(
                    io.Float.Input(block, **RATIO, tooltip=f"Share of model1 in {block.rstrip('.')}.")
                    for block in blocks(RELEASE.decoder)
                ),
            ],
            outputs=[io.Model.Output("model", display_name="model", tooltip="The mixed decoder.")],
        )

    @classmethod
    def execute(cls, model1: Any, model2: Any, **ratios: float) -> io.NodeOutput:
        check(cls, model1=model1, model2=model2, **ratios)
        return io.NodeOutput(merge(model1, model2, ratios))
