"""Downloading the release in ComfyUI."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..ovis_core.native.compat import search_aliases
from ..ovis_core.native.model_list.fetching import fetch
from ..ovis_core.weights.download import REPOSITORY
from .checks import checked
from .schema import CATEGORY


class OvisU1Download(io.ComfyNode):
    """Repository -> release folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Download",
            **search_aliases("download model", "fetch weights"),
            display_name="Ovis-U1 Download",
            category=CATEGORY,
            description=(
                "Downloads the model (about 7 GB) into models/ovis_u1 and checks its files. The download starts when "
                "you run this node, and resumes if it was stopped. Then press R and choose the model in Ovis-U1 Load "
                "Model."
            ),
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "repository",
                    default=REPOSITORY,
                    tooltip=(
                        "The repository to download, as owner/name, from the Hugging Face Hub, or from the mirror that "
                        "the environment variable HF_ENDPOINT names."
                    ),
                ),
                io.String.Input(
                    "revision", default="main", tooltip="Branch, tag or commit of the repository.", optional=True
                ),
            ],
            outputs=[io.String.Output("folder", display_name="folder", tooltip="The folder with the model.")],
        )

    @classmethod
    def fingerprint_inputs(cls, repository: str, revision: str = "main") -> float:
        """Always runs again, because files may have been deleted."""
        return float("nan")

    @classmethod
    @checked
    def execute(cls, repository: str, revision: str = "main") -> io.NodeOutput:
        folder = str(fetch(repository, revision))
        return io.NodeOutput(folder, ui=ui.PreviewText(f"{folder} is complete."))
