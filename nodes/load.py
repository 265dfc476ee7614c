"""The loaders."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..ovis_core.native.compat import search_aliases
from ..ovis_core.native.loading import load
from ..ovis_core.native.model_list import folders, offered_models
from ..ovis_core.weights.checkpoint import open_parts
from ..ovis_core.weights.precision import PRECISIONS
from .checks import checked
from .schema import CATEGORY

WEIGHT_DTYPE = io.Combo.Input(
    "weight_dtype",
    options=list(PRECISIONS),
    default="default",
    tooltip=(
        "Data type of the weights of the diffusion model and the text encoder. default: the type in the file, or one "
        "that suits this device better. If memory is short, choose fp8_e4m3fn: the large matrices of the diffusion "
        "model and the language model are stored in 8 bits, so the model takes about two thirds of the memory, at "
        "slightly lower precision. fp8_e4m3fn_fast: the diffusion model also multiplies in 8 bits, on GPUs that "
        "support it. A file with quantized weights keeps their format, unless you choose bf16, fp16 or fp32."
    ),
)
OUTPUTS = [
    io.Model.Output("model", display_name="model", tooltip="The diffusion model, including its token refiner."),
    io.Clip.Output("clip", display_name="clip", tooltip="The language model and the visual tokenizer."),
    io.Vae.Output("vae", display_name="vae", tooltip="Encodes images to latents and decodes latents to images."),
]
# Input, ComfyUI's folder, contents of the file.
PARTS = (
    ("diffusion_model_name", "diffusion_models", "the diffusion model, as ModelSave writes it"),
    ("text_encoder_name", "text_encoders", "language model and visual tokenizer, as CLIPSave writes them"),
    ("vae_name", "vae", "Ovis-U1's VAE or any SDXL VAE"),
)


class OvisU1Loader(io.ComfyNode):
    """A release folder, or a file with all parts -> MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Loader",
            **search_aliases("load model", "checkpoint loader"),
            display_name="Ovis-U1 Load Model",
            category=CATEGORY,
            description=(
                "Loads Ovis-U1 from a folder in models/ovis_u1, or from one file. The outputs are ComfyUI's own types, "
                "so ComfyUI's nodes for sampling, LoRA, VAE and saving work with them."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=offered_models.names(),
                    tooltip=(
                        "The model to load: a folder in models/ovis_u1 with config.json and safetensors files, for "
                        "example models/ovis_u1/Ovis-U1-3B, or one file in models/checkpoints, written by Save "
                        "Checkpoint. Press R after you add one. scripts/convert.py makes smaller files for less VRAM. "
                        "ovis-u1-shapes (built in) needs no download: this small model draws one circle, square or "
                        "triangle in one of eight colours on a plain background, at 128 x 128 pixels."
                    ),
                ),
                WEIGHT_DTYPE,
            ],
            outputs=OUTPUTS,
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        """Replaces the page's 'value not in list' with an error that says where models belong."""
        if model_name is None:
            return True  # the value of a link is not known yet
        return offered_models.why_missing(model_name) or True

    @classmethod
    def fingerprint_inputs(cls, model_name: str, weight_dtype: str) -> str:
        """Changes when the model's files do, so that a new download is loaded."""
        return offered_models.fingerprint(model_name)

    @classmethod
    @checked
    def execute(cls, model_name: str, weight_dtype: str) -> io.NodeOutput:
        return io.NodeOutput(*load(offered_models.open_named(model_name), PRECISIONS[weight_dtype]))


class OvisU1LoadParts(io.ComfyNode):
    """Three files -> MODEL, CLIP, VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1LoadParts",
            **search_aliases("load model", "diffusion model", "text encoder", "vae"),
            display_name="Ovis-U1 Load Parts",
            category=CATEGORY,
            description=(
                "Loads Ovis-U1 from three files, one for each part. Use it for a finetuned part or another SDXL VAE. "
                "It takes files that ModelSave, CLIPSave and VAESave write; a file may also contain other parts."
            ),
            inputs=[
                *(
                    io.Combo.Input(name, options=folders.part_names(kind), tooltip=f"A file in models/{kind}: {what}.")
                    for name, kind, what in PARTS
                ),
                WEIGHT_DTYPE,
            ],
            outputs=OUTPUTS,
        )

    @classmethod
    def fingerprint_inputs(
        cls, diffusion_model_name: str, text_encoder_name: str, vae_name: str, weight_dtype: str
    ) -> str:
        """Changes when a file does."""
        names = (diffusion_model_name, text_encoder_name, vae_name)
        if None in names:
            return ""  # the value of a link is not known yet
        return folders.fingerprint(*cls._paths(*names))

    @classmethod
    @checked
    def execute(
        cls, diffusion_model_name: str, text_encoder_name: str, vae_name: str, weight_dtype: str
    ) -> io.NodeOutput:
        paths = cls._paths(diffusion_model_name, text_encoder_name, vae_name)
        return io.NodeOutput(*load(open_parts(*paths), PRECISIONS[weight_dtype]))

    @classmethod
    def _paths(cls, *names: str) -> list[Path]:
        for name, (key, kind, _) in zip(names, PARTS, strict=True):
            if name not in folders.part_names(kind):
                raise ValueError(
                    f"{key}: {name!r} was not found in models/{kind}; choose another file, or add it and press R to "
                    "refresh."
                )
        return [folders.part_path(kind, name) for name, (_, kind, _) in zip(names, PARTS, strict=True)]
