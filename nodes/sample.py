"""Schedule, guidance and sampling."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..ovis_core.native.compat import ADVANCED, search_aliases
from ..ovis_core.native.guider import OvisGuider
from ..ovis_core.native.sampling import empty_latent, sample, sigmas_for
from ..ovis_core.schedule import SCHEDULER
from .checks import checked, need_image_latent
from .schema import CATEGORY

STEPS = {
    "default": 50,
    "min": 1,
    "max": 10000,
    "tooltip": "Number of denoising steps. The authors use 50; fewer steps are faster and can look worse.",
}
DENOISE = {
    "default": 1.0,
    "min": 0.0,
    "max": 1.0,
    "step": 0.01,
    "tooltip": "1: start from pure noise. Lower it to keep more of an image that the latent contains.",
}
TXT_CFG = {
    "default": 5.0,
    "min": 0.0,
    "max": 100.0,
    "step": 0.1,
    "round": 0.01,
    "tooltip": (
        "How strongly to follow the prompt. The authors use 5 for text to image and 6 for edits. 1: no text guidance."
    ),
}
IMG_CFG = {
    "default": 1.5,
    "min": 0.0,
    "max": 100.0,
    "step": 0.1,
    "round": 0.01,
    "tooltip": (
        "How strongly to keep the source image. The authors use 1.5; raise it if an edit changes too much. It has an "
        "effect only if image_only is connected."
    ),
}
SHARE = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.001}
POSITIVE_TIP = "Positive conditioning, from Ovis-U1 Text Encode or Ovis-U1 Edit Encode."
IMAGE_ONLY_TIP = (
    "For edits: image_only of Ovis-U1 Edit Encode, the conditioning with the source image and without the "
    "instruction. img_cfg needs it."
)


class OvisU1Scheduler(io.ComfyNode):
    """Latent -> sigmas of the model's own schedule for its size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Scheduler",
            **search_aliases("sigmas", "schedule"),
            display_name="Ovis-U1 Scheduler",
            category=CATEGORY,
            description=(
                "Makes the model's own noise schedule for SamplerCustomAdvanced. The larger the image, the longer the "
                "schedule stays at high noise."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Ovis-U1 Load Model."),
                io.Latent.Input("latent", tooltip="The latent that will be sampled; only its size is used."),
                io.Int.Input("steps", **STEPS),
                io.Float.Input("denoise", **DENOISE),
            ],
            outputs=[
                io.Sigmas.Output(
                    "sigmas",
                    display_name="sigmas",
                    tooltip=(
                        "For SamplerCustomAdvanced: steps + 1 noise levels, from 1 (noise), or less if denoise is "
                        "below 1, to 0 (image)."
                    ),
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, latent: dict[str, Any], steps: int, denoise: float) -> io.NodeOutput:
        latent = empty_latent(model, latent)
        need_image_latent(latent)
        return io.NodeOutput(sigmas_for(model, latent["samples"], steps, denoise))


class OvisU1Guider(io.ComfyNode):
    """Conditions and scales -> GUIDER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Guider",
            **search_aliases("guidance", "cfg"),
            display_name="Ovis-U1 Guider",
            category=CATEGORY,
            description=(
                "Text guidance for SamplerCustomAdvanced, and image guidance if image_only is connected. Ovis-U1 "
                "Sampler combines schedule, guidance and sampling in one node."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Ovis-U1 Load Model."),
                io.Conditioning.Input("positive", tooltip=POSITIVE_TIP),
                io.Conditioning.Input("negative", tooltip="Negative conditioning, from the same node as positive."),
                io.Float.Input("txt_cfg", **TXT_CFG),
                io.Conditioning.Input("image_only", optional=True, tooltip=IMAGE_ONLY_TIP),
                io.Float.Input("img_cfg", optional=True, **IMG_CFG),
                io.Float.Input(
                    "cfg_start",
                    **ADVANCED,
                    **SHARE,
                    default=0.0,
                    optional=True,
                    tooltip=(
                        "Guidance starts at this fraction of the sampling. Raise it to save time: before it, each step "
                        "runs the diffusion model once, with positive alone, instead of twice (three times for edits)."
                    ),
                ),
                io.Float.Input(
                    "cfg_end",
                    **ADVANCED,
                    **SHARE,
                    default=1.0,
                    optional=True,
                    tooltip=(
                        "Guidance ends at this fraction of the sampling. Lower it to save time: after it, each step "
                        "runs the diffusion model once. For text to image, 0.8 saves a tenth of the passes."
                    ),
                ),
            ],
            outputs=[io.Guider.Output("guider", display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        txt_cfg: float,
        image_only: Any = None,
        img_cfg: float = IMG_CFG["default"],
        cfg_start: float = 0.0,
        cfg_end: float = 1.0,
    ) -> io.NodeOutput:
        scales = {"txt_cfg": txt_cfg, "img_cfg": img_cfg, "cfg_start": cfg_start, "cfg_end": cfg_end}
        if cfg_start >= cfg_end:
            raise ValueError(
                f"cfg_start: expected less than cfg_end ({cfg_end}), got {cfg_start}; lower cfg_start, or raise "
                "cfg_end."
            )
        return io.NodeOutput(OvisGuider(model, positive, negative, image_only=image_only, **scales))


class OvisU1Sampler(io.ComfyNode):
    """Noise -> image latent, with the settings of the model's authors."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisU1Sampler",
            **search_aliases("ksampler", "text to image", "edit image"),
            display_name="Ovis-U1 Sampler",
            category=CATEGORY,
            description=(
                "Samples with the model's own schedule and guidance, for text to image and for edits. It sets the "
                "shift of the schedule to suit the size of the latent. For separate nodes, use Ovis-U1 Scheduler and "
                "Ovis-U1 Guider with SamplerCustomAdvanced, RandomNoise and KSamplerSelect."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of Ovis-U1 Load Model."),
                io.Conditioning.Input("positive", tooltip=POSITIVE_TIP),
                io.Conditioning.Input("negative", tooltip="Negative conditioning, from the same node as positive."),
                io.Latent.Input(
                    "latent",
                    tooltip=(
                        "For text to image: Empty Latent Image, with the same width and height as in Ovis-U1 Text "
                        "Encode. For edits: the latent of Ovis-U1 Edit Encode."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Seed of the noise that sampling starts from. Another seed gives another image.",
                ),
                io.Int.Input("steps", **STEPS),
                io.Float.Input("txt_cfg", **TXT_CFG),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="One of ComfyUI's samplers. The authors use euler.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=[SCHEDULER, *comfy.samplers.SCHEDULER_NAMES],
                    default=SCHEDULER,
                    tooltip=(
                        "ovis_u1: the model's own schedule, which the authors use. The others are ComfyUI's, with a "
                        "shift that suits the size of the latent, or with the shift that ModelSamplingFlux sets on the "
                        "model."
                    ),
                ),
                io.Float.Input("denoise", **DENOISE),
                io.Conditioning.Input("image_only", optional=True, tooltip=IMAGE_ONLY_TIP),
                io.Float.Input("img_cfg", optional=True, **IMG_CFG),
            ],
            outputs=[
                io.Latent.Output(
                    "samples", display_name="latent", tooltip="The sampled latent, for Ovis-U1 Decode or VAE Decode."
                )
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        txt_cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        image_only: Any = None,
        img_cfg: float = IMG_CFG["default"],
    ) -> io.NodeOutput:
        latent = empty_latent(model, latent)
        need_image_latent(latent)
        guider = OvisGuider(model, positive, negative, txt_cfg, image_only, img_cfg)
        return io.NodeOutput(sample(guider, latent, seed, sampler_name, scheduler, steps, denoise))
