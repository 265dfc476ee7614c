"""The decoder as ComfyUI's diffusion model: its layers, its attention, its wrappers and its arguments."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ..networks.decoder import Decoder
from ..weights.config import LATENT_PATCH, DecoderConfig
from .layers.comfy_layers import comfy_layers


class DiffusionModel(Decoder):
    """`Decoder` in the form in which a `BaseModel` creates and calls it."""

    def __init__(
        self,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = None,
        **config: Any,
    ) -> None:
        super().__init__(DecoderConfig(**config), comfy_layers(operations, dtype, device))
        # ComfyUI and nodes read these, for example RenormCFG `in_channels`.
        self.dtype = dtype
        self.patch_size = LATENT_PATCH
        self.in_channels, self.out_channels = self.config.in_channels, self.config.out_channels

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """`Decoder.forward`, through the wrappers of core nodes (caches, compile).

        Without `y`, `context` is an unrefined condition (B, L, context_in_dim).
        """
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        if wrappers:
            # EasyCache changes x in place and returns it. In float32, x0 would then be computed from the changed x.
            x = x.clone()
        return WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timestep, context, y, ref_latents, control, options, **kwargs
        )

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None,
        ref_latents: list[Tensor] | None,
        control: dict[str, Any] | None,
        transformer_options: dict[str, Any],
        text_lengths: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if y is None:
            context, y = self.refine(context)
        if control is not None:
            raise ValueError("conditioning: Ovis-U1 does not support ControlNet; remove the ControlNet node.")
        return super().forward(x, timestep, context, y, ref_latents or (), transformer_options, text_lengths)
