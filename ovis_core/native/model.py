"""Ovis-U1 as a ComfyUI BaseModel: a flow whose conditions are refined once per sampling run."""

from __future__ import annotations

import math
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.supported_models_base
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..networks.attention import without_cudnn
from ..networks.packing import grid_size
from ..schedule import shift_for
from ..weights.config import LATENT_CHANNELS, LATENT_PATCH, LATENT_SCALE
from .diffusion_model import DiffusionModel
from .page.input_warnings import warn_of_empty_mask, warn_of_size
from .patch_checks import PatchChecks

REFINED = "ovis_u1_refined"  # marks a condition that has been refined


class PaddedText(comfy.conds.CONDRegular):
    """Text tokens (B, L, hidden) that may share a batch with longer or shorter ones, padded with zeros at the end."""

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        """Whether the two differ only in length."""
        same_width = self.cond.shape[::2] == other.cond.shape[::2]
        return isinstance(other, PaddedText) and same_width and self.cond.device == other.cond.device

    def concat(self, others: list[comfy.conds.CONDRegular]) -> Tensor:
        """One batch, as long as the longest."""
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


class OvisU1(comfy.model_base.BaseModel):
    """Sampling as a flow (x0 = x - t v), conditions refined once per sampling run."""

    def __init__(self, model_config: comfy.supported_models_base.BASE, device: Any = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLUX, device=device, unet_model=DiffusionModel)
        self.memory_usage_factor_conds = ("ref_latents", "c_crossattn")
        self.patch_checks = PatchChecks()
        # A text token takes as much memory as an image token, which covers several pixels of the latent.
        covers = LATENT_PATCH**2
        self.memory_usage_shape_process = {"c_crossattn": lambda shape: [shape[0], shape[2], shape[1] * covers]}
        self.side: int | None = None  # as `Checkpoint.side`

    def shift(self, latent: Tensor) -> float:
        """mu of the model's schedule for latents (B, 4, H, W)."""
        config = self.diffusion_model.config
        return shift_for(math.prod(grid_size(latent)), config.base_shift, config.max_shift)

    def refine(self, condition: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Condition (B, L, context_in_dim) -> refined tokens (B, L, hidden) and vector (B, hidden) on `device`.

        ComfyUI must have loaded the module's weights. Raises ValueError for another model's condition.
        """
        with without_cudnn():
            return self.diffusion_model.refine(self._for_refiner(condition, device))

    def _for_refiner(self, condition: Tensor, device: torch.device) -> Tensor:
        width = self.diffusion_model.config.context_in_dim
        if condition.ndim != 3 or condition.shape[-1] != width:
            raise ValueError(
                f"conditioning: expected tensors of width {width}, got {condition.shape[-1]}; encode the prompt with "
                "the CLIP of Ovis-U1 Load Model."
            )
        return condition.to(device, self.manual_cast_dtype or self.get_dtype())

    def apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 (as ComfyUI declares it)
        **kwargs: Any,
    ) -> Tensor:
        """x0 of one pass. Raises ValueError for patches that would have no effect."""
        self.patch_checks(transformer_options)
        return super().apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Runs once per condition and sampling run, and so does the refiner, unless weights change during sampling.

        Raises ValueError for a condition of another model or of another batch.
        """
        out = super().extra_conds(**kwargs)
        noise = kwargs.get("noise")
        if noise is not None:
            _check_batch(noise, kwargs.get("cross_attn"))
            warn_of_size(self.side, *(LATENT_SCALE * side for side in noise.shape[-2:]))
            warn_of_empty_mask(kwargs.get("denoise_mask"))
        tokens, vector = self._text(**kwargs)
        # CONDRegular keeps conditions of different length apart; CONDCrossAttn would repeat the shorter one.
        out["c_crossattn"] = comfy.conds.CONDRegular(tokens)
        if vector is not None and self._compares_conditions():
            out["c_crossattn"] = PaddedText(tokens)
            out["text_lengths"] = comfy.conds.CONDRegular(torch.tensor([tokens.shape[1]], device=tokens.device))
        if vector is not None:
            out["y"] = comfy.conds.CONDRegular(vector)
        references = kwargs.get("reference_latents")
        if references:
            # Moved to the device here, because ComfyUI would otherwise move them in each pass.
            latents = [self._reference(latent.to(kwargs["device"])) for latent in references]
            out["ref_latents"] = comfy.conds.CONDList(latents)
        return out

    def _compares_conditions(self) -> bool:
        """Whether a patch reads attention's output; such a patch may need both conditions of guidance in one batch."""
        patcher = self.current_patcher
        options = {} if patcher is None else patcher.model_options.get("transformer_options", {})
        return bool(options.get("patches", {}).get("attn1_output_patch"))

    def _text(self, device: torch.device, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """The decoder's `context` and `y`; `y` is None if the refiner must run in each pass."""
        condition = kwargs.get("cross_attn")
        if condition is None:
            raise ValueError("conditioning: expected an encoded prompt, got none; connect Ovis-U1 Text Encode.")
        if kwargs.get(REFINED):
            width = self.diffusion_model.config.hidden_size
            if condition.shape[-1] != width:
                raise ValueError(
                    f"conditioning: expected refined conditioning of width {width}, got width {condition.shape[-1]} "
                    "from another model; connect this MODEL to Ovis-U1 Refine Conditioning."
                )
            return condition.to(device), kwargs["pooled_output"].to(device)
        if torch.is_grad_enabled() or kwargs.get("hooks") is not None:
            # The refiner's weights change from pass to pass, in training or by hooks.
            return self._for_refiner(condition, device).clone(), None
        return self.refine(condition, device)

    def _reference(self, latent: Tensor) -> Tensor:
        """Latents (B, C, h, w) of a reference image, converted to model space."""
        channels = self.latent_format.latent_channels
        if latent.shape[1] != channels:
            raise ValueError(
                f"conditioning: expected reference latents with {channels} channels, got {latent.shape[1]}; encode "
                "the reference images with the VAE of Ovis-U1 Load Model."
            )
        return self.process_latent_in(latent)

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """Shapes of the tensors that `extra_conds` will add, for the memory estimate before loading."""
        out = {}
        condition = kwargs.get("cross_attn")
        if condition is not None:
            out["c_crossattn"] = list(condition.shape)
        references = kwargs.get("reference_latents")
        if references:
            elements = sum(latent.nelement() // latent.shape[1] for latent in references)
            out["ref_latents"] = [1, LATENT_CHANNELS, elements]
        return out


def _check_batch(noise: Tensor, condition: Tensor | None) -> None:
    """Raises ValueError for a batch of conditions that does not fit the batch of latents.

    ComfyUI would repeat or drop conditions, so that an image gets the condition of another one.
    """
    if condition is not None and len(noise) % len(condition):
        raise ValueError(
            f"latent: expected a batch size that is a multiple of {len(condition)}, the batch size of the "
            f"conditioning, got {len(noise)}; connect the latent of the same Ovis-U1 Edit Encode, or choose images "
            "with ImageFromBatch before that node."
        )
