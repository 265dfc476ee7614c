"""Lets core's save nodes write quantized weights that are not loaded completely, and so are stored as integers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .compat import saved_part_of_quantized_weight
from .wrapping import Core, wrap


def register() -> None:
    """Wraps the constructor of the parameters that core saves for such weights."""
    parameter = saved_part_of_quantized_weight()
    if parameter is not None:
        wrap(parameter, "__new__", _without_gradient)


def _without_gradient(core: Core, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The parameter for a tensor; core's constructor asks for a gradient, which integers cannot have."""
    kind, _, _, tensor = args
    return core(*args, **kwargs) if tensor.is_floating_point() else tensor.as_subclass(kind)
