"""What the nodes ask of their inputs; each refusal is one sentence that names the input and what to do."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ovis_core.conversation import Conversation
from ..ovis_core.native.clip import OvisTextModel
from ..ovis_core.native.model import OvisU1
from ..ovis_core.sizes import LATENT_FACTOR

CATEGORY = "Ovis-U1"
LATENT_SCALE = 8  # pixels a latent


def need_model(model: Any) -> None:
    """Refuses a MODEL that is not Ovis-U1."""
    if not isinstance(model.model, OvisU1):
        raise ValueError(
            f"model: this is {type(model.model).__name__}, not Ovis-U1; connect the MODEL of Ovis-U1 Load Model."
        )


def need_clip(clip: Any) -> None:
    """Refuses a CLIP that is not Ovis-U1's."""
    if not isinstance(getattr(clip, "cond_stage_model", None), OvisTextModel):
        kind = type(getattr(clip, "cond_stage_model", clip)).__name__
        raise ValueError(f"clip: this is {kind}, not Ovis-U1's; connect the CLIP of Ovis-U1 Load Model.")


def need_one_text(**texts: Any) -> None:
    """Refuses anything but one text."""
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name}: this is a {type(text).__name__}, not one text; connect one STRING.")


def need_pictures(optional: bool = False, **batches: Any) -> Any:
    """The images (height, width, channels) of one batch; refuses anything else. `optional`: none is no images."""
    ((name, batch),) = batches.items()
    if batch is None and optional:
        return ()
    if not isinstance(batch, Tensor) or batch.ndim != 4:
        kind = f"it has {batch.ndim} dimensions" if isinstance(batch, Tensor) else f"this is a {type(batch).__name__}"
        raise ValueError(f"{name}: {kind} and a batch of images is a tensor of 4; connect an IMAGE.")
    if 0 in batch.shape:
        raise ValueError(f"{name}: it is empty; connect at least one image.")
    return batch


def need_numbers(node: type[io.ComfyNode], **values: Any) -> None:
    """Refuses numbers that the node's widgets would not take; over a link anything can come."""
    for spec in node.define_schema().inputs:
        if spec.id not in values or not isinstance(spec, io.Int.Input | io.Float.Input):
            continue
        value, whole = values[spec.id], isinstance(spec, io.Int.Input)
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if not right or not spec.min <= value <= spec.max:
            kind = "whole number" if whole else "number"
            raise ValueError(f"{spec.id}: {value!r} is not a {kind} from {spec.min} to {spec.max}; change it.")


def need_history(history: Any) -> None:
    """Refuses what is no conversation."""
    if not isinstance(history, Conversation | None):
        raise ValueError("history: this is no conversation; connect the history of another Ovis-U1 Understand.")


def need_size(**sides: int) -> None:
    """Refuses sides in pixels that the decoder cannot make."""
    for name, side in sides.items():
        if side < LATENT_FACTOR or side % LATENT_FACTOR:
            lower = max(side // LATENT_FACTOR * LATENT_FACTOR, LATENT_FACTOR)
            raise ValueError(
                f"{name}: {side} pixels is not a multiple of {LATENT_FACTOR}; use {lower} or {lower + LATENT_FACTOR}."
            )


def need_latent(latent: dict[str, Any]) -> None:
    """Refuses latents that are not images, or whose size the decoder cannot make."""
    samples = latent["samples"]
    if samples.ndim != 4:
        raise ValueError(
            f"latent: it has {samples.ndim} dimensions and an image's has 4; use Empty Latent Image or VAE Encode."
        )
    if samples.shape[1] != 4 and samples.count_nonzero() > 0:
        raise ValueError(
            f"latent: it has {samples.shape[1]} channels and Ovis-U1's has 4; encode the image with the VAE of "
            "Ovis-U1 Load Model."
        )
    height, width = (side * LATENT_SCALE for side in samples.shape[-2:])
    if height % LATENT_FACTOR or width % LATENT_FACTOR:
        raise ValueError(
            f"latent: its image is {width} x {height} pixels and each side must be a multiple of {LATENT_FACTOR}; "
            f"use {width // LATENT_FACTOR * LATENT_FACTOR} x {height // LATENT_FACTOR * LATENT_FACTOR}."
        )
