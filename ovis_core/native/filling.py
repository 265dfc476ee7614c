"""Stored weights -> the layers of a network."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ..weights.lazy_tensors import MARK, OLDER_SCALE, SCALE, Stored, scale_marks, scaled_layers
from ..weights.precision import DEFAULT, PRECISIONS, Precision, as_stored
from .compat import scaled_fp8_operations, supports_fp64


def for_device(precision: Precision, weights: Mapping[str, Stored], device: torch.device) -> Precision:
    """The precision for these weights, of types that ComfyUI can cast on `device`.

    By default they stay as they are stored, or become bfloat16 or float32 if the device does not have their type.
    Raises ValueError if the user chose a type that it does not have.
    """
    stored = as_stored(precision, weights)
    if _castable(stored, weights, device):
        return stored
    possible = [name for name, other in PRECISIONS.items() if other != DEFAULT and _castable(other, weights, device)]
    if precision != DEFAULT:
        chosen = next(name for name, other in PRECISIONS.items() if other == precision)
        raise ValueError(
            f"weight_dtype: {chosen} does not work on this device ({device.type}); choose default or one of "
            f"{', '.join(possible)}."
        )
    wide = wide_dtype(device)
    logging.warning(
        "Ovis-U1: weights of type %s cannot be used on this device (%s); they are loaded as %s.",
        " and ".join(sorted(str(dtype) for dtype in _types(stored, weights) if not castable(dtype, device))),
        device.type,
        wide,
    )
    return Precision(every=wide)


def _castable(precision: Precision, weights: Mapping[str, Stored], device: torch.device) -> bool:
    return all(castable(dtype, device) for dtype in _types(precision, weights))


def _types(precision: Precision, weights: Mapping[str, Stored]) -> set[torch.dtype]:
    """The types that these weights are kept in."""
    if precision.every is not None:
        return {precision.every}
    kept = {stored.dtype for stored in weights.values() if stored.dtype.is_floating_point}
    return kept if precision.large is None else kept | {precision.large}


def castable(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ComfyUI can cast weights of this type on `device`."""
    management = comfy.model_management
    if dtype != torch.float64:
        return management.supports_cast(device, dtype)
    return supports_fp64(device)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type for weights if the device does not have the one that they are stored in."""
    return torch.bfloat16 if castable(torch.bfloat16, device) else torch.float32


def fill(network: nn.Module, weights: Mapping[str, Stored], assign: bool) -> None:
    """Loads weights by their names in the network; each is read once, scales aside.

    assign  the layers take the tensors themselves, which stay in their files until they are needed, as dynamic VRAM
            wants them; otherwise they are copied one by one, so that memory holds no more
            than the network, unless they are of the layer's dtype and last where they are
    """
    if assign:
        network.load_state_dict({name: stored.read() for name, stored in weights.items()}, strict=False, assign=True)
    else:
        _copy(network, weights)
    # Newer ComfyUIs list these in a layer's state dict, where hooks and merges look for them in the layer itself.
    for layer in scaled_layers(weights):
        for name in (SCALE, MARK):
            if layer + name in weights:
                setattr(network.get_submodule(layer), name[1:], weights[layer + name].read().clone())


def _copy(network: nn.Module, weights: Mapping[str, Stored]) -> None:
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    for layer, names in layers.items():
        module = network.get_submodule(layer)
        own = {f"{layer}.{name}".lstrip("."): parameter for name, parameter in module._parameters.items()}
        # A layer that makes its weight of what it is given would keep the file.
        tensors = {name: weights[name].read() if name in own else weights[name].read().clone() for name in names}
        stay = all(weights[name].lasting and _alike(tensors[name], own[name]) for name in names if name in own)
        how, errors = {"assign_to_params_buffers": stay}, list[str]()
        module._load_from_state_dict(tensors, f"{layer}." if layer else "", how, False, [], [], errors)
        if errors:
            raise RuntimeError("; ".join(errors))


def _alike(tensor: Tensor, parameter: Tensor) -> bool:
    return tensor.dtype == parameter.dtype and tensor.device == parameter.device


def scales_are_fixed(network: nn.Module) -> bool:
    """Whether a network has layers with scales whose weights this ComfyUI does not change in place."""
    return any(hasattr(layer, MARK[1:]) for layer in network.modules())


def scaled_operations(
    weights: Mapping[str, Stored], dtype: torch.dtype, device: torch.device, fast: bool
) -> tuple[Any, dict[str, Stored]]:
    """ComfyUI's layers for weights with scales, and the weights by the names that they ask for.

    dtype  of the other weights
    fast   multiply in 8 bits, on a device that can
    """
    multiply = fast and comfy.model_management.supports_fp8_compute(device)
    older = scaled_fp8_operations()
    if older is None:
        operations = comfy.ops.mixed_precision_ops({}, dtype, full_precision_mm=not multiply)
        return operations, {**weights, **scale_marks(weights, multiply)}
    renamed = {
        f"{name.removesuffix(SCALE)}{OLDER_SCALE}" if name.endswith(SCALE) else name: stored
        for name, stored in weights.items()
    }
    return older(fp8_matrix_mult=multiply, scale_input=False), renamed
