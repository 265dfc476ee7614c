"""Lets core's save nodes write quantized weights that are still in RAM.

Some formats store integers, for which the class of core's parameters raises an error.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..compat import bound_arguments, saved_part_of_quantized_weight
from .wrapping import Core, wrap


def register() -> None:
    """Wraps the constructor of the parameters that core saves for such weights."""
    parameter = saved_part_of_quantized_weight()
    if parameter is not None:
        wrap(parameter, "__new__", _without_gradient)


def _without_gradient(core: Core, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The parameter for a tensor; core's constructor asks for a gradient, which integers cannot have."""
    try:
        return core(*args, **kwargs)
    except RuntimeError:
        tensor = bound_arguments(core, args, kwargs).get("tensor")
        if not isinstance(tensor, Tensor) or tensor.is_floating_point():
            raise
        return tensor.as_subclass(args[0])
