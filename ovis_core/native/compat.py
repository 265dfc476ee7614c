"""Differences between versions of ComfyUI. Apart from `__init__.py`, only this file asks which features are there.

The code asks for features, never for the version. Each entry names the versions that lack the feature or differ, so
that it is clear what can be deleted when the oldest supported version is raised. "0.3.75" is that oldest version; the
versions known to have a feature are 0.29 and later unless an entry says more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from inspect import signature
from typing import Any

import comfy
import comfy.model_patcher
import comfy.ops
import comfy.quant_ops
import comfy.sample
import comfy.sd
import comfy.supported_models
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import Input, io
from torch import Tensor, nn

try:
    from comfy_execution import jobs
except ImportError:  # 0.3.75 does not have it
    jobs = None

# ---- schemas of nodes

# Puts an input behind "Show advanced". 0.3.75 has no such section: the input is shown with the others.
ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in signature(io.Float.Input.__init__).parameters else {}

# A seed that stays the same from run to run until the user changes it. 0.3.75 knows only True: a new seed each run.
FIXED_SEED = io.ControlAfterGenerate.fixed if hasattr(io, "ControlAfterGenerate") else True


def search_aliases(*words: str) -> dict[str, Any]:
    """Words by which the page's search finds a node, for its schema. 0.3.75 searches names only."""
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}


FIXED_INPUTS = 3  # of a group of growing inputs, in a ComfyUI whose nodes have fixed inputs only


def growing_inputs(group: str, template: io.Input, names: Sequence[str]) -> list[io.Input]:
    """Optional inputs like `template`: the page shows one more than are connected. `grown` collects their values.

    0.3.75 has fixed inputs only: the first `FIXED_INPUTS`. They have the ids that the growing ones have in a prompt,
    for example "images.image_2", so a workflow with so few of them runs in all versions.
    """
    if hasattr(io, "Autogrow"):
        growing = io.Autogrow.TemplateNames(template, names=list(names), min=0)
        return [io.Autogrow.Input(group, template=growing, optional=True, tooltip=template.tooltip)]
    return [_named(template, f"{group}.{name}", name) for name in names[:FIXED_INPUTS]]


def grown(group: str, names: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Id -> value of the growing inputs that have one, in the order of `names`.

    inputs  keyword arguments of a node's `execute`: 0.3.75 passes each value by its id, later versions a dictionary

    Raises ValueError for one value instead of the group, which only a prompt over the API can have.
    """
    members = _members(group, names[0], inputs.get(group))
    values = {**inputs, **{f"{group}.{name}": value for name, value in members.items()}}
    ids = [f"{group}.{name}" for name in names]
    return {key: values[key] for key in ids if values.get(key) is not None}


def single_inputs(spec: io.Input, value: Any) -> list[tuple[io.Input, Any]]:
    """An entry of a schema and its value as pairs to check: one pair, or one for each growing input that has a value.

    0.3.75 has no entries that stand for several inputs.

    Raises ValueError for one value instead of the group, which only a prompt over the API can have.
    """
    if not hasattr(io, "Autogrow") or not isinstance(spec, io.Autogrow.Input):
        return [(spec, value)]
    template, group = spec.template, _members(spec.id, spec.template.names[0], value)
    return [(_named(template.input, f"{spec.id}.{name}", name), one) for name, one in group.items()]


def _members(group: str, first: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping | None):
        raise ValueError(
            f"{group}: expected inputs with names such as {group}.{first}, got {type(value).__name__}; connect an "
            f"image to {group}.{first}."
        )
    return value or {}


def _named(template: io.Input, name: str, display_name: str) -> io.Input:
    made = copy(template)
    made.id, made.display_name, made.optional = name, display_name, True
    return made


# Hides a node from the menu and the search of the page. 0.3.75 hides only deprecated nodes.
HIDDEN: dict[str, Any] = {"is_dev_only" if "is_dev_only" in io.Schema.__dataclass_fields__ else "is_deprecated": True}


def trim_window(video: Input.Video) -> tuple[float, float] | None:
    """The part of its file that a VIDEO stands for: start and duration in seconds, 0 for "to the end"; None: not known.

    0.3.75 cannot trim a VIDEO. A version that can, but has no method that returns the part, gives None. So does a VIDEO
    whose frames are cropped or resized when they are read, which versions after 0.33 have.
    """
    if getattr(video, "has_pending_frame_edits", bool)():
        return None
    if hasattr(video, "get_active_trim_window"):
        return video.get_active_trim_window()
    return None if hasattr(video, "as_trimmed") else (0.0, 0.0)


# For the schema of a node with text on it: a cached node's text is sent also if the page runs only a part of the graph.
# 0.3.75 sends it only with a run of the node itself.
KEEPS_TEXT: dict[str, Any] = (
    {"has_intermediate_output": True} if "has_intermediate_output" in io.Schema.__dataclass_fields__ else {}
)

# Whether ComfyUI takes a text file as the result of a node: its page's app mode shows no other texts. 0.3.75 does not,
# and has no app mode.
SHOWS_TEXT_FILES = jobs is not None and ".txt" in getattr(jobs, "TEXT_EXTENSIONS", ())


# ---- devices and types


def supports_fp64(device: torch.device) -> bool:
    """Whether the device has float64. 0.3.75 has no function for it, so the devices without float64 are listed here."""
    if hasattr(model_management, "supports_fp64"):
        return model_management.supports_fp64(device)
    directml = model_management.directml_enabled
    return not (model_management.is_device_mps(device) or model_management.is_intel_xpu() or directml)


def device_context(device: torch.device) -> AbstractContextManager[None]:
    """Makes `device` the current one, for several GPUs. 0.3.75 uses one GPU and has no such context."""
    context = getattr(model_management, "cuda_device_context", None)
    return context(device) if context else nullcontext()


# Whether CUDA graphs may be used. 0.3.75 and 0.29 have no switch for them.
CUDA_GRAPHS = not getattr(args, "disable_cuda_graphs", False)


def rotates_in_one_kernel(q: Tensor, k: Tensor, pe: Tensor) -> bool:
    """Whether ComfyUI has a kernel for rotary positions on this device and for these types.

    0.3.75 does not use the package comfy_kitchen; later versions run without it if it cannot be imported.
    """
    kitchen = getattr(comfy.quant_ops, "ck", None)
    if kitchen is None:
        return False
    return kitchen.registry.get_capable_backend("apply_rope", {"xq": q, "xk": k, "freqs_cis": pe}) != "eager"


def scaled_fp8_operations() -> Callable[..., Any] | None:
    """Layers for float8 weights with scales in 0.3.75; None: `comfy.ops.mixed_precision_ops` has them."""
    return getattr(comfy.ops, "scaled_fp8_ops", None)


def quantized_formats() -> dict[str, set[str]]:
    """Formats of quantized layers -> suffixes of the tensors that these layers take beside their weights.

    0.3.75 computes float8 with one scale. Later versions list more, each with the tensors' names.
    """
    if scaled_fp8_operations() is not None:
        return {"float8_e4m3fn": {".weight_scale"}}
    listed = comfy.quant_ops.QUANT_ALGOS
    return {name: {f".{parameter}" for parameter in form["parameters"]} for name, form in listed.items()}


def saved_part_of_quantized_weight() -> type | None:
    """The class of the parameters that are saved for a quantized weight in RAM, made of (caster, name, tensor).

    0.3.75 does not have it: its quantized weights are plain tensors.
    """
    return getattr(comfy.model_patcher, "LazyCastingParamPiece", None)


def mixed_operations(dtype: torch.dtype, device: torch.device, full_precision: bool) -> Any:
    """Layers for weights of each quantized format, in versions without `scaled_fp8_operations`.

    Versions after 0.33 can list the formats in which a device cannot multiply, and know more of them.

    dtype           of weights that are not quantized
    full_precision  multiply in the type of the activations; otherwise a layer's quant config decides, and formats in
                    which the device cannot multiply are dequantized
    """
    supported = {
        "float8_e4m3fn": "supports_fp8_compute",
        "float8_e5m2": "supports_fp8_compute",
        "mxfp8": "supports_mxfp8_compute",
        "nvfp4": "supports_nvfp4_compute",
    }
    offered = quantized_formats()
    if hasattr(comfy.ops, "get_disabled_quant_formats"):
        disabled = offered.keys() & comfy.ops.get_disabled_quant_formats(device)
    else:
        disabled = {
            name
            for name, question in supported.items()
            if name in offered and not getattr(model_management, question)(device)
        }
    return comfy.ops.mixed_precision_ops({}, dtype, full_precision_mm=full_precision, disabled=disabled)


# ---- dynamic VRAM: weights stay in their files and are paged in when a layer needs them. 0.3.75 does not have it.


def dynamic_vram() -> bool:
    """Whether dynamic VRAM is on in this process."""
    memory = getattr(comfy, "memory_management", None)
    return memory is not None and memory.aimdo_enabled


def is_dynamic(patcher: ModelPatcher) -> bool:
    """Whether this patcher uses dynamic VRAM."""
    return hasattr(patcher, "is_dynamic") and patcher.is_dynamic()


def takes_tensors(text_model: nn.Module) -> bool:
    """Whether a CLIP's network takes the tensors themselves as weights; otherwise their values are copied.

    The CLIP sets the attribute before it loads weights with dynamic VRAM.
    """
    return getattr(text_model, "can_assign_sd", False)


def resident_weight(layer: nn.Module) -> Tensor | None:
    """The copy of a layer's weight that dynamic VRAM keeps on the device; None if there is none."""
    return getattr(layer, "_v_weight", None)


def new_patcher(
    model: nn.Module,
    weights: Mapping[str, Any],
    load_device: torch.device,
    offload_device: torch.device,
    disable_dynamic: bool,
) -> ModelPatcher:
    """A patcher without weights, with dynamic VRAM if it is on, like those of ComfyUI's own loaders.

    CoreModelPatcher is the class with or without dynamic VRAM; 0.3.75 has ModelPatcher only. Versions after 0.33 also
    take the speed of the disk with the weights.
    """
    kind = ModelPatcher if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)
    options = {}
    if "fast_disk" in signature(kind.__init__).parameters:
        from comfy.storage import state_dict_fast_disk

        options["fast_disk"] = state_dict_fast_disk(weights)
    return kind(model, load_device=load_device, offload_device=offload_device, **options)


def new_clip(target: Any, weights: Mapping[str, Any], disable_dynamic: bool, **arguments: Any) -> comfy.sd.CLIP:
    """A CLIP with its weights.

    0.3.75 loads the weights afterwards and has no dynamic VRAM to disable; later versions take them in the constructor,
    so that they can stay in the file until they are needed.
    """
    offered = signature(comfy.sd.CLIP.__init__).parameters
    if "disable_dynamic" in offered:
        arguments["disable_dynamic"] = disable_dynamic
    if "state_dict" in offered:
        return comfy.sd.CLIP(target, state_dict=[weights], **arguments)
    clip = comfy.sd.CLIP(target, **arguments)
    clip.load_sd(weights)
    return clip


# ---- ComfyUI's own loaders


def reads_ovis_u1() -> bool:
    """Whether ComfyUI's own loaders read Ovis-U1 without this pack. No version does yet."""
    # Another pack's entry may be anything.
    known = (f"{getattr(m, '__name__', '')} {getattr(m, 'unet_config', '')}" for m in comfy.supported_models.models)
    return any("ovisu1" in re.sub("[^a-z0-9]", "", name.lower()) for name in known)


def bound_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with defaults. Raises TypeError if the function does not take them.

    0.3.75's loaders do not have `disable_dynamic`.
    """
    bound = signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


# ---- latents

RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # keys of an empty LATENT that give its scale


def fix_empty_latent(patcher: ModelPatcher, latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT with this model's channels and scale if it is empty, otherwise as they are.

    0.3.75 corrects only the channels; later versions also correct the scale of another model's empty latent.
    """
    offered = signature(comfy.sample.fix_empty_latent_channels).parameters
    ratios = {name: latent[name] for name in RATIOS if name in latent and name in offered}
    return comfy.sample.fix_empty_latent_channels(patcher, latent["samples"], **ratios)
