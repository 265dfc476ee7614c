"""The loader."""

from __future__ import annotations

from comfy_api.latest import io

from ..ovis_core.native import folders, loading
from ..ovis_core.native.precision import PRECISIONS
from .checks import CATEGORY


class OvisU1Loader(io.ComfyNode):
    """Release folder -> MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the page shows."""
        return io.Schema(
            node_id="OvisU1Loader",
            display_name="Ovis-U1 Load Model",
            category=CATEGORY,
            description=(
                "Loads Ovis-U1 from a folder under models/ovis_u1. The outputs are ComfyUI's own types: any sampler, "
                "LoRA, VAE or save node takes them."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=list(folders.find_models()),
                    tooltip=(
                        "Folder of the release (config.json, safetensors files) under models/ovis_u1, for example "
                        "models/ovis_u1/Ovis-U1-3B. Press R after adding one."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(PRECISIONS),
                    default="default",
                    tooltip=(
                        "How the decoder's and the language model's weights are kept. default: as they are stored, or "
                        "as this device computes best. fp8: the large matrices in 8 bits, for half the memory and a "
                        "little less precision; fast multiplies in 8 bits too, on cards that can."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output("model", display_name="model", tooltip="The diffusion decoder and its token refiner."),
                io.Clip.Output("clip", display_name="clip", tooltip="The language model and the visual tokenizer."),
                io.Vae.Output("vae", display_name="vae", tooltip="Latents to pixels and back."),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        """Says where models go, instead of the page's bare 'value not in list'."""
        # A name that comes over a link is not known yet.
        return model_name is None or folders.missing(model_name) or True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, weight_dtype: str) -> str:
        """Changes when the folder's files do, so that a new download is loaded."""
        folder = folders.find_models().get(model_name)
        if folder is None:
            return model_name
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt"))
        return repr([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        """Loads."""
        problem = folders.missing(model_name)
        if problem:
            raise ValueError(problem)
        return io.NodeOutput(*loading.load_release(folders.find_models()[model_name], PRECISIONS[weight_dtype]))
