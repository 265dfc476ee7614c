"""The decoder as a ComfyUI MODEL."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.hooks import EnumHookType
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor
from torch.nn.functional import pad

from ..carried import carried
from ..checkpoint import TEXT
from ..config import LATENT_CHANNELS, LATENT_PATCH, LATENT_SCALE, DecoderConfig
from ..networks.attention import without_cudnn
from ..networks.decoder import Decoder
from ..networks.packing import grid_size
from ..networks.patches import check_patches, origin
from ..precision import DEFAULT, LARGE, Precision, in_precision
from ..schedule import shift_for
from ..stored import Stored, scaled_layers
from .filling import castable, fill, for_device, scaled_operations, scales_are_fixed, wide_dtype
from .layers import comfy_layers, keep_patchable, prepare
from .notice import warn_of_size

T = TypeVar("T")

NAG = "nodes_nag"  # core's NAGuidance
REFINED = "ovis_u1_refined"  # marks a condition whose tensor and pooled_output come from the refiner

# ComfyUI counts a pass's memory as latent pixels * bytes of the dtype * factor * 0.01 MiB. At hidden size 1536 the live
# tensors of a pass come to 0.56 of that in bfloat16 and 0.48 in float32; the rest is for the allocator.
MEMORY_FACTOR = 0.59

# The release's names of the QK norms' scales, and ComfyUI's layers' name.
NORM_SCALE, NORM_WEIGHT = "_norm.scale", "_norm.weight"


class PaddedText(comfy.conds.CONDRegular):
    """Text tokens (B, L, hidden) that come in one batch with longer or shorter ones, zeros at their end."""

    def can_concat(self, other: comfy.conds.CONDRegular) -> bool:
        """Whether both differ in length alone."""
        same_width = self.cond.shape[::2] == other.cond.shape[::2]
        return isinstance(other, PaddedText) and same_width and self.cond.device == other.cond.device

    def concat(self, others: list[comfy.conds.CONDRegular]) -> Tensor:
        """One batch, as long as the longest."""
        texts = [self.cond, *(other.cond for other in others)]
        longest = max(text.shape[1] for text in texts)
        return torch.cat([pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


class NativeDecoder(Decoder):
    """`Decoder` with ComfyUI's layers, attention and wrappers."""

    def __init__(
        self,
        image_model: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        operations: Any = None,
        **config: Any,
    ) -> None:
        super().__init__(DecoderConfig(**config), comfy_layers(operations, dtype, device))

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
        """`Decoder.forward`, through the wrappers that core nodes (caches, compile) put around it.

        Without `y`, `context` is a condition that is not refined yet, (B, L, context_in_dim).
        """
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        if wrappers:
            # EasyCache answers with x itself, changed in place, and in float32 x is what x0 is then computed from.
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
            raise ValueError("conditioning: no ControlNet exists for Ovis-U1; disconnect it.")
        return super().forward(x, timestep, context, y, ref_latents or (), transformer_options, text_lengths)


class ModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's model management asks of a model."""

    unet_extra_config: dict[str, Any] = {}
    latent_format = comfy.latent_formats.SDXL
    # Not float16: the condition holds the language model's unnormed states, which overflow it.
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__({"image_model": "ovis_u1", **dataclasses.asdict(config)})
        self.decoder = config
        self.text_encoder_key_prefix = [TEXT.comfy_prefix]
        self.sampling_settings = {"shift": config.max_shift}
        self.memory_usage_factor = MEMORY_FACTOR * config.hidden_size / 1536

    def get_model(self, state_dict: dict[str, Tensor], prefix: str = "", device: Any = None) -> OvisU1:
        """The module, without weights."""
        return OvisU1(self, device=device)

    def process_unet_state_dict(self, state_dict: Mapping[str, T]) -> dict[str, T]:
        """Release's names -> module's."""
        return {name.replace(NORM_SCALE, NORM_WEIGHT): value for name, value in state_dict.items()}

    def process_unet_state_dict_for_saving(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Module's names -> release's, under ComfyUI's prefix."""
        renamed = {name.replace(NORM_WEIGHT, NORM_SCALE): value for name, value in state_dict.items()}
        return super().process_unet_state_dict_for_saving(renamed | carried(decoder=self.decoder))


class OvisU1(comfy.model_base.BaseModel):
    """Sampling as a flow (x0 = x - t v), conditions refined once per sampling run."""

    def __init__(self, model_config: ModelConfig, device: Any = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLUX, device=device, unet_model=NativeDecoder)
        self.memory_usage_factor_conds = ("ref_latents", "c_crossattn")
        # Of this sampling run, see `_check_pair`: whether positive and negative came in one batch, and which of the two
        # came without the other at which sigmas.
        self.pair_seen = False
        self.came_alone: tuple[Tensor | None, set[int]] = (None, set())
        # Text tokens cost what image tokens cost, and one of those covers several pixels of the latent.
        covers = LATENT_PATCH**2
        self.memory_usage_shape_process = {"c_crossattn": lambda shape: [shape[0], shape[2], shape[1] * covers]}
        self.side: int | None = None  # as `Checkpoint.side`

    def shift(self, latent: Tensor) -> float:
        """mu of the model's schedule for latents (B, 4, H, W)."""
        config = self.diffusion_model.config
        return shift_for(math.prod(grid_size(latent)), config.base_shift, config.max_shift)

    def refine(self, condition: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Condition (B, L, context_in_dim) -> refined tokens (B, L, hidden) and vector (B, hidden) on `device`.

        The module's weights must have been loaded by ComfyUI. Raises ValueError for another model's condition.
        """
        with without_cudnn():
            return self.diffusion_model.refine(self._for_refiner(condition, device))

    def _for_refiner(self, condition: Tensor, device: torch.device) -> Tensor:
        width = self.diffusion_model.config.context_in_dim
        if condition.ndim != 3 or condition.shape[-1] != width:
            raise ValueError(
                f"conditioning: its tensor is {condition.shape[-1]} wide and this Ovis-U1 takes {width}; "
                "encode the prompt with the CLIP of Ovis-U1 Load Model."
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
        """x0 of one pass. Raises ValueError for patches that can have no effect."""
        check_patches(transformer_options)
        self._check_pair(transformer_options)
        return super().apply_model(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def _check_pair(self, options: dict[str, Any]) -> None:
        """Refuses a node that compares the two conditions of guidance if they do not come in one batch.

        The first step in which both are active decides: one of them may begin late or end early. Patches may add passes
        of single conditions later.
        """
        patches = options.get("patches", {}).get("attn1_output_patch", ())
        pair = {0, 1}.intersection(options.get("cond_or_uncond") or ())
        if self.pair_seen or not pair or not any(origin(patch) == NAG for patch in patches):
            return
        if len(pair) == 2:
            self.pair_seen = True
            return
        # All passes of a step are given the same tensor.
        sigmas, alone = self.came_alone
        if sigmas is not options.get("sigmas"):
            alone = set()
        self.came_alone = (options.get("sigmas"), alone | pair)
        if len(alone | pair) == 2:
            raise ValueError(
                "model: NAGuidance needs positive and negative in one batch, and they came separately; give both or "
                "neither a reference image and hooks, free memory, or remove NAGuidance."
            )

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Runs once per condition and sampling run: the place for the refiner, unless weights change meanwhile."""
        out = super().extra_conds(**kwargs)
        noise = kwargs.get("noise")
        if noise is not None:
            warn_of_size(self.side, *(LATENT_SCALE * side for side in noise.shape[-2:]))
        hooks = kwargs.get("hooks")
        if hooks is not None and scales_are_fixed(self.diffusion_model) and hooks.get_type(EnumHookType.Weight):
            raise ValueError(
                "conditioning: ComfyUI cannot change weights that have scales by hooks; load the model with "
                "weight_dtype bf16, or take Load LoRA instead of the hook."
            )
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
            # On the device, where ComfyUI would bring them for each pass.
            latents = [self._reference(latent.to(kwargs["device"])) for latent in references]
            out["ref_latents"] = comfy.conds.CONDList(latents)
        return out

    def _compares_conditions(self) -> bool:
        """Whether patches see attention's output, which may want both conditions of guidance in one batch."""
        patcher = self.current_patcher
        options = {} if patcher is None else patcher.model_options.get("transformer_options", {})
        return bool(options.get("patches", {}).get("attn1_output_patch"))

    def _text(self, device: torch.device, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """What the decoder takes for `context` and `y`; no `y` where the refiner is to run in each pass."""
        condition = kwargs.get("cross_attn")
        if condition is None:
            raise ValueError("conditioning: it holds no text; encode a prompt with Ovis-U1 Text Encode.")
        if kwargs.get(REFINED):
            width = self.diffusion_model.config.hidden_size
            if condition.shape[-1] != width:
                raise ValueError(
                    f"conditioning: it was refined by another model, which is {condition.shape[-1]} wide and not "
                    f"{width}; refine it with this MODEL."
                )
            return condition.to(device), kwargs["pooled_output"].to(device)
        if torch.is_grad_enabled() or kwargs.get("hooks") is not None:
            # The refiner's weights change from pass to pass, in training or by hooks.
            return self._for_refiner(condition, device).clone(), None
        return self.refine(condition, device)

    def _reference(self, latent: Tensor) -> Tensor:
        """A reference image's latents (B, C, h, w) in model space."""
        channels = self.latent_format.latent_channels
        if latent.shape[1] != channels:
            raise ValueError(
                f"conditioning: a reference latent has {latent.shape[1]} channels and Ovis-U1's has {channels}; "
                "encode it with the VAE of Ovis-U1 Load Model."
            )
        return self.process_latent_in(latent)

    def extra_conds_shapes(self, **kwargs: Any) -> dict[str, list[int]]:
        """Shapes of what `extra_conds` will add, for the memory estimate before loading."""
        out = {}
        condition = kwargs.get("cross_attn")
        if condition is not None:
            out["c_crossattn"] = list(condition.shape)
        references = kwargs.get("reference_latents")
        if references:
            out["ref_latents"] = [1, LATENT_CHANNELS, sum(math.prod(latent.shape[2:]) for latent in references)]
        return out


def build_model(
    config: DecoderConfig,
    weights: Mapping[str, Stored],
    precision: Precision = DEFAULT,
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """MODEL from the release's weights of the decoder (names without prefix), made as ComfyUI makes its own.

    disable_dynamic  no dynamic VRAM, where ComfyUI has it
    """
    management = comfy.model_management
    model_config = ModelConfig(config)
    supported = model_config.supported_inference_dtypes
    load_device = management.get_torch_device()
    precision = for_device(precision, weights, load_device)
    weights = in_precision(weights, precision)
    small = {name: stored.meta for name, stored in weights.items() if not LARGE.search(name)}
    dtype = precision.every or management.unet_dtype(
        model_params=sum(stored.meta.nelement() for stored in weights.values()),
        supported_dtypes=list(supported),
        weight_dtype=comfy.utils.weight_dtype(small),
    )
    if not castable(dtype, load_device):
        wide = wide_dtype(load_device)
        logging.warning(
            "Ovis-U1: weights of type %s cannot be used on this device (%s); they are loaded as %s.",
            dtype,
            load_device.type,
            wide,
        )
        dtype = wide
    # On a GPU ComfyUI would compute in the type of float16 weights.
    stand_in = dtype if dtype in supported else torch.bfloat16
    cast = management.unet_manual_cast(stand_in, load_device, supported)
    model_config.set_inference_dtype(dtype, cast if stand_in is dtype else cast or stand_in)
    model_config.optimizations["fp8"] = precision.fast
    if scaled_layers(weights):
        model_config.custom_operations, weights = scaled_operations(weights, dtype, load_device, precision.fast)
    model = model_config.get_model({})
    prepare(model.diffusion_model, precision)

    # Where ComfyUI has dynamic VRAM, its own loaders use CoreModelPatcher.
    plain = comfy.model_patcher.ModelPatcher
    patcher_class = plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)
    options = {}
    if "fast_disk" in inspect.signature(patcher_class.__init__).parameters:
        options["fast_disk"] = importlib.import_module("comfy.storage").state_dict_fast_disk(weights)
    offload_device = management.unet_offload_device()
    patcher = patcher_class(model, load_device=load_device, offload_device=offload_device, **options)
    patcher.add_callback(CallbacksMP.ON_CLEANUP, _after_sampling)
    keep_patchable(patcher)
    if not management.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    fill(model.diffusion_model, model_config.process_unet_state_dict(weights), assign=is_dynamic(patcher))
    return patcher


def _after_sampling(patcher: comfy.model_patcher.ModelPatcher) -> None:
    patcher.model.pair_seen, patcher.model.came_alone = False, (None, set())
    patcher.model.diffusion_model.rotary_tables.clear()


def is_dynamic(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether ComfyUI pages this patcher's weights in by itself (dynamic VRAM)."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def refine(patcher: comfy.model_patcher.ModelPatcher, conditioning: list[list[Any]]) -> list[list[Any]]:
    """CONDITIONING with every entry refined: tensor (B, L, hidden), `pooled_output` (B, hidden).

    Entries that are refined already stay as they are, and so do those with hooks, which the refiner is to follow: they
    are refined in sampling.
    """
    model: OvisU1 = patcher.model
    out, loaded = [], False
    for tensor, values in conditioning:
        if not values.get(REFINED) and values.get("hooks") is None:
            if not loaded:
                comfy.model_management.load_models_gpu([patcher])
                loaded = True
            tokens, vector = model.refine(tensor, patcher.load_device)
            keep = comfy.model_management.intermediate_device()
            tensor = tokens.to(keep, torch.float32)
            values = values | {"pooled_output": vector.to(keep, torch.float32), REFINED: True}
        out.append([tensor, values])
    return out
