"""Ovis-U1 in ComfyUI's own loaders: Load Checkpoint, Load Diffusion Model, Load CLIP, and nodes that load like them.

They all call three functions of `comfy.sd` with a state dict. Ovis-U1's is loaded as Ovis-U1 Load Model loads it; any
other goes to ComfyUI unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sd
from torch import Tensor

from ...weights.checkpoint import Checkpoint, check_tensors
from ...weights.components import DECODER, TEXT, VAE, Component, Kind
from ...weights.lazy_tensors import FP8, NAMES_OF, entry_of
from ...weights.precision import DEFAULT, PRECISIONS, Precision
from ...weights.recognition import has_component, has_decoder, has_text_encoder
from ...weights.safetensors_file import QUANT_HEADER, CheckpointError, header_quant_configs
from ..compat import bound_arguments, reads_ovis_u1
from ..layers.network_weights import LoadOptions
from ..loading import load_component
from .wrapping import Core, wrap

Arguments = Mapping[str, Any]  # of a call of one of core's functions
StateDict = Mapping[str, Any]
Options = Mapping[str, Any]  # `model_options`

NOT_ALONE = (
    "clip_name1, clip_name2: expected one file, because Ovis-U1 has one text encoder, got several; choose its file in "
    "Load CLIP."
)


def register() -> None:
    """Wraps the functions through which all of ComfyUI's loaders go."""
    for name, loader in LOADERS.items():
        wrap(comfy.sd, name, loader)


@dataclass(frozen=True)
class Loader:
    """Loads Ovis-U1 instead of one of core's functions.

    find        the arguments of a call -> the checked model; None if it is another model. Raises `CheckpointError` if
                it looks like Ovis-U1 and cannot be loaded
    build       that model and the arguments -> what core's function returns
    core_knows  whether core's function may try to load what `find` raised an error for
    """

    find: Callable[[Arguments], Checkpoint | None]
    build: Callable[[Checkpoint, Arguments], Any]
    core_knows: Callable[[Arguments], bool] = lambda arguments: True

    def __call__(self, core: Core, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `core`, or of `build` for Ovis-U1. Raises what either raises.

        An error within `find` never stops another model: it is logged, and `core` loads the model.
        """
        try:
            arguments = bound_arguments(core, args, kwargs)
            checkpoint = None if reads_ovis_u1() else self.find(arguments)
        except CheckpointError as error:
            if not self.core_knows(arguments):
                raise
            return _core_or(error, core, args, kwargs)
        except Exception:
            logging.warning(
                "Ovis-U1: could not check whether this is an Ovis-U1 model, so ComfyUI's own loader loads it.",
                exc_info=True,
            )
            checkpoint = None
        if checkpoint is None:
            return core(*args, **kwargs)
        return self.build(checkpoint, arguments)


def _core_or(reason: CheckpointError, core: Core, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of `core`. Raises `reason` if core cannot load the model either."""
    try:
        loaded = core(*args, **kwargs)
    except Exception as error:
        raise reason from error
    if loaded is None:
        raise reason
    return loaded


# ---- the arguments of a call -> the checked model


def _find_checkpoint(arguments: Arguments) -> Checkpoint | None:
    state_dict = arguments["sd"]
    if not has_decoder(state_dict):
        return None
    wanted = {DECODER: "output_model", TEXT: "output_clip", VAE: "output_vae"}
    kinds = [kind for kind, output in wanted.items() if arguments[output] and has_component(kind, state_dict)]
    return _checked(arguments, state_dict, kinds)


def _find_decoder(arguments: Arguments) -> Checkpoint | None:
    return _checked(arguments, arguments["sd"], [DECODER]) if has_decoder(arguments["sd"]) else None


def _find_text(arguments: Arguments) -> Checkpoint | None:
    state_dicts = arguments["state_dicts"]
    for state_dict in state_dicts:
        if has_text_encoder(state_dict):
            if len(state_dicts) > 1:
                raise CheckpointError(NOT_ALONE)
            return _checked(arguments, state_dict, [TEXT])
    return None


def _core_knows_text(arguments: Arguments) -> bool:
    """Whether core recognises each text encoder; it loads others as CLIP-L, without their weights."""
    return all(comfy.sd.detect_te_model(state_dict) is not None for state_dict in arguments["state_dicts"])


def _checked(arguments: Arguments, state_dict: StateDict, kinds: Iterable[Kind]) -> Checkpoint:
    entries = {name: entry_of(name, tensor) for name, tensor in state_dict.items() if isinstance(tensor, Tensor)}
    # 0.3.75 puts a text encoder's metadata among its tensors.
    header = (arguments.get("metadata") or {}).get(QUANT_HEADER) or state_dict.get(QUANT_HEADER)
    return check_tensors(entries | header_quant_configs("the file", header, entries), kinds)


# ---- what core's functions return


def _build_checkpoint(checkpoint: Checkpoint, arguments: Arguments) -> tuple[Any, Any, Any, None]:
    """MODEL, CLIP and VAE, in the order of `load_state_dict_guess_config`; None for those that are not wanted."""
    state_dict, options = arguments["sd"], arguments["model_options"]
    disable_dynamic = arguments.get("disable_dynamic", False)
    model = clip = vae = None
    # As core does, a checkpoint without a VAE gives one that raises an error when it is used.
    if arguments["output_vae"]:
        vae = (
            _load(checkpoint, VAE, state_dict, options, disable_dynamic)
            if VAE in checkpoint.components
            else comfy.sd.VAE(sd={})
        )
    if arguments["output_clip"] and TEXT in checkpoint.components:
        clip = _load(checkpoint, TEXT, state_dict, arguments["te_model_options"], disable_dynamic)
    elif arguments["output_clip"]:
        logging.warning(
            "Ovis-U1: the checkpoint has no text encoder, so the CLIP output is empty; load one with Load CLIP."
        )
    if arguments["output_model"]:
        model = _load(checkpoint, DECODER, state_dict, options, disable_dynamic)
    return model, clip, vae, None


def _build_decoder(checkpoint: Checkpoint, arguments: Arguments) -> Any:
    options, disable_dynamic = arguments["model_options"], arguments.get("disable_dynamic", False)
    return _load(checkpoint, DECODER, arguments["sd"], options, disable_dynamic)


def _build_text(checkpoint: Checkpoint, arguments: Arguments) -> Any:
    options, disable_dynamic = arguments["model_options"], arguments.get("disable_dynamic", False)
    return _load(checkpoint, TEXT, arguments["state_dicts"][0], options, disable_dynamic)


def _load(checkpoint: Checkpoint, kind: Kind, state_dict: StateDict, options: Options, disable_dynamic: bool) -> Any:
    """One component, with the `model_options` of core's loaders and of other packs' loaders.

    Raises ValueError for options that Ovis-U1 does not have.
    """
    load_options = LoadOptions(
        options.get("load_device"),
        options.get("offload_device"),
        options.get("initial_device"),
        options.get("custom_operations"),
    )
    precision = DEFAULT if kind == VAE else _precision(options, checkpoint.components[kind])
    return load_component(checkpoint, kind, precision, disable_dynamic, load_options, state_dict)


def _precision(options: Options, component: Component) -> Precision:
    """The precision that `model_options` ask for. Raises ValueError for one that Ovis-U1 does not have."""
    dtype, fast = options.get("dtype", options.get("weight_dtype")), bool(options.get("fp8_optimizations"))
    if dtype is None:
        eight = any(entry.matrix or entry.dtype == NAMES_OF[FP8] for entry in component.entries.values())
        return PRECISIONS["fp8_e4m3fn_fast"] if fast and eight else DEFAULT
    for precision in (Precision(every=dtype), Precision(large=dtype, fast=fast)):
        if precision in PRECISIONS.values():
            return precision
    raise ValueError(
        "weight_dtype: expected default, fp8_e4m3fn or fp8_e4m3fn_fast, got "
        f"{str(dtype).removeprefix('torch.')}; choose one of these."
    )


LOADERS = {
    "load_state_dict_guess_config": Loader(_find_checkpoint, _build_checkpoint),
    "load_diffusion_model_state_dict": Loader(_find_decoder, _build_decoder),
    "load_text_encoder_state_dicts": Loader(_find_text, _build_text, _core_knows_text),
}
