"""Checks of the nodes' inputs. Each error is one sentence that names the input and says what to do.

ComfyUI checks the range of a widget and the type of a link. A connected node can still return a number outside the
range, and a node of another pack can return any value.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import Input, io
from torch import Tensor

from ..ovis_core.native.compat import single_inputs
from ..ovis_core.native.improving import Loop
from ..ovis_core.native.model import OvisU1
from ..ovis_core.native.text_model import OvisTextModel
from ..ovis_core.pixels import need_images
from ..ovis_core.sizes import LATENT_FACTOR
from ..ovis_core.text.conversation import Conversation
from ..ovis_core.text.prompts import PROMPT_SLOT
from ..ovis_core.weights.config import LATENT_CHANNELS, LATENT_SCALE
from .schema import History, LoopState

FILES = ("model_name", "diffusion_model_name", "text_encoder_name", "vae_name")  # the node reports a missing file


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Decorates a node's `execute`: raises ValueError for the first input that does not fit its entry in the schema.

    Goes below `classmethod`. The names and defaults of the inputs are those of `execute`'s signature.
    """
    signature = inspect.signature(execute)

    @functools.wraps(execute)
    def checking(cls: type[io.ComfyNode], *args: Any, **inputs: Any) -> io.NodeOutput:
        bound = signature.bind(cls, *args, **inputs)
        bound.apply_defaults()
        values = {**bound.arguments, **bound.kwargs}
        # The schema that ComfyUI keeps: defining it again would list files.
        for spec in (cls.SCHEMA or cls.GET_SCHEMA()).inputs:
            for single, value in single_inputs(spec, values.get(spec.id)):
                if value is not None or not single.optional:
                    CHECKS[type(single)](single, value)
        return execute(cls, *args, **inputs)

    return checking


def _need_model(spec: Any, model: Any) -> None:
    inner = getattr(model, "model", model)
    if not isinstance(inner, OvisU1):
        raise ValueError(
            f"{spec.id}: expected an Ovis-U1 MODEL, got {type(inner).__name__}; connect the MODEL of Ovis-U1 Load "
            "Model."
        )


def _need_clip(spec: Any, clip: Any) -> None:
    inner = getattr(clip, "cond_stage_model", clip)
    if not isinstance(inner, OvisTextModel):
        raise ValueError(
            f"{spec.id}: expected an Ovis-U1 CLIP, got {type(inner).__name__}; connect the CLIP of Ovis-U1 Load Model."
        )


def _need_vae(spec: Any, vae: Any) -> None:
    if not hasattr(vae, "first_stage_model"):
        raise ValueError(f"{spec.id}: expected a VAE, got {type(vae).__name__}; connect the VAE of Ovis-U1 Load Model.")
    channels = vae.latent_channels
    if channels != LATENT_CHANNELS:
        raise ValueError(
            f"{spec.id}: expected a VAE with {LATENT_CHANNELS} latent channels, got {channels}; connect the VAE of "
            "Ovis-U1 Load Model, or an SDXL VAE."
        )


def _need_text(spec: Any, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{spec.id}: expected text, got {type(text).__name__}; connect one STRING.")


def _need_number(spec: Any, value: Any) -> None:
    whole = isinstance(spec, io.Int.Input)
    right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if not right or not spec.min <= value <= spec.max:
        kind = "whole number" if whole else "number"
        raise ValueError(
            f"{spec.id}: expected a {kind} from {spec.min} to {spec.max}, got {value!r}; use a number in this range."
        )


def _need_choice(spec: Any, value: Any) -> None:
    if spec.id not in FILES and value not in spec.options:
        shown = ", ".join([*map(str, spec.options[:8]), *["..."] * (len(spec.options) > 8)])
        raise ValueError(f"{spec.id}: expected one of {shown}, got {value!r}; choose one of them.")


def _need_images(spec: Any, batch: Any) -> None:
    need_images(spec.id, batch)


def _need_video(spec: Any, video: Any) -> None:
    if isinstance(video, Tensor):
        _need_images(spec, video)
    elif not isinstance(video, Input.Video):
        raise ValueError(
            f"{spec.id}: expected a VIDEO or an IMAGE, got {type(video).__name__}; connect Load Video, or a node that "
            "returns frames."
        )


def _need_conditioning(spec: Any, conditioning: Any) -> None:
    if not isinstance(conditioning, list) or not all(isinstance(entry, list | tuple) for entry in conditioning):
        raise ValueError(
            f"{spec.id}: expected CONDITIONING, got {type(conditioning).__name__}; connect Ovis-U1 Text Encode or "
            "Ovis-U1 Edit Encode."
        )


def _need_latent(spec: Any, latent: Any) -> None:
    samples = latent.get("samples") if isinstance(latent, dict) else None
    if not isinstance(samples, Tensor):
        found = type(latent if samples is None else samples).__name__
        raise ValueError(
            f"{spec.id}: expected a LATENT, got {found}; connect Empty Latent Image, VAE Encode or a sampler."
        )
    if samples.ndim != 4 or 0 in samples.shape:
        raise ValueError(
            f"{spec.id}: expected a LATENT of 4 dimensions, none of them 0, got shape {list(samples.shape)}; connect "
            "Empty Latent Image or VAE Encode."
        )


def _need_history(spec: Any, history: Any) -> None:
    if not isinstance(history, Conversation):
        raise ValueError(
            f"{spec.id}: expected a conversation, got {type(history).__name__}; connect the history of another Ovis-U1 "
            "Understand."
        )


def _need_loop(spec: Any, loop: Any) -> None:
    if not isinstance(loop, Loop):
        raise ValueError(
            f"{spec.id}: expected a loop of Ovis-U1 Improve, got {type(loop).__name__}; use Ovis-U1 Improve, which "
            "adds this node itself."
        )


def _need_nothing(spec: Any, value: Any) -> None:
    """No check: any value counts as true or false, or comes from a node of the same loop."""


CHECKS = {
    io.Model.Input: _need_model,
    io.Clip.Input: _need_clip,
    io.Vae.Input: _need_vae,
    io.String.Input: _need_text,
    io.Int.Input: _need_number,
    io.Float.Input: _need_number,
    io.Combo.Input: _need_choice,
    io.Image.Input: _need_images,
    io.MultiType.Input: _need_video,
    io.Conditioning.Input: _need_conditioning,
    io.Latent.Input: _need_latent,
    io.Boolean.Input: _need_nothing,
    History.Input: _need_history,
    LoopState.Input: _need_loop,
    io.AnyType.Input: _need_nothing,
}


def need_size(**sides: int) -> None:
    """Raises ValueError for sides, in pixels, that the decoder cannot make."""
    wrong = {name: side for name, side in sides.items() if side != _allowed(side)}
    if len(wrong) > 1:
        got, use = (" and ".join(map(str, values)) for values in (wrong.values(), map(_allowed, wrong.values())))
        raise ValueError(f"{' and '.join(wrong)}: expected multiples of {LATENT_FACTOR} pixels, got {got}; use {use}.")
    for name, side in wrong.items():
        lower = _allowed(side)
        raise ValueError(
            f"{name}: expected a multiple of {LATENT_FACTOR} pixels, got {side}; use {lower} or "
            f"{lower + LATENT_FACTOR}."
        )


def need_batches_of(count: int, batches: Mapping[str, Tensor]) -> None:
    """Raises ValueError for a batch, by the name of its input, that has neither one image nor `count`."""
    for name, batch in batches.items():
        if len(batch) not in (1, count):
            expected = "one image" if count == 1 else f"1 image or {count} (one for each image in image)"
            raise ValueError(f"{name}: expected {expected}, got {len(batch)}; choose one of them with ImageFromBatch.")


def need_prompt(prompt: str, **templates: str) -> None:
    """Raises ValueError if a template contains {prompt} and there is no prompt, or if there is one and none does."""
    users = [name for name, template in templates.items() if PROMPT_SLOT in template]
    if users and not prompt.strip():
        raise ValueError(
            f"prompt: expected text for {PROMPT_SLOT} in {users[0]}, got none; enter a prompt, or remove {PROMPT_SLOT}."
        )
    if prompt.strip() and not users:
        *others, last = templates
        where = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"prompt: expected {PROMPT_SLOT} in {where}, got none; add {PROMPT_SLOT}, or clear prompt.")


def need_words(**texts: str) -> None:
    """Raises ValueError for a text that is empty."""
    for name, text in texts.items():
        if not text.strip():
            raise ValueError(f"{name}: expected text, got none; enter text.")


def need_image_latent(latent: dict[str, Any]) -> None:
    """Raises ValueError for latents of another model, and for sizes that the decoder cannot make."""
    samples = latent["samples"]
    if samples.shape[1] != LATENT_CHANNELS and samples.count_nonzero() > 0:
        raise ValueError(
            f"latent: expected {LATENT_CHANNELS} channels, got {samples.shape[1]}; encode the image with the VAE of "
            "Ovis-U1 Load Model."
        )
    height, width = (side * LATENT_SCALE for side in samples.shape[-2:])
    if (height, width) != (_allowed(height), _allowed(width)):
        raise ValueError(
            f"latent: expected sides that are multiples of {LATENT_FACTOR} pixels, got {width} x {height} pixels; "
            f"use {_allowed(width)} x {_allowed(height)}."
        )


def _allowed(side: int) -> int:
    """The largest side up to `side` that the decoder can make, or its smallest side."""
    return max(side // LATENT_FACTOR * LATENT_FACTOR, LATENT_FACTOR)
