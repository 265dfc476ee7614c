"""Wraps functions of core for which ComfyUI has no extension point."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

Core = Callable[..., Any]  # a function of core
Wrapper = Callable[[Core, tuple[Any, ...], dict[str, Any]], Any]  # of that function, and its arguments in a call
CURRENT = "ovis_u1_wrapper"  # attribute of a wrapped function: a list with the one wrapper that it calls


def wrap(owner: ModuleType | type, name: str, wrapper: Wrapper) -> None:
    """Replaces a function of a module or a class; calls of it return the result of `wrapper`.

    A function is wrapped once. If the pack is loaded again, the wrapper of its last copy is called, because ComfyUI
    also takes the nodes of the last copy.
    """
    core = getattr(owner, name)
    if hasattr(core, CURRENT):
        getattr(core, CURRENT)[:] = [wrapper]
        return
    current = [wrapper]

    @wraps(core)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return current[0](core, args, kwargs)

    setattr(wrapped, CURRENT, current)
    setattr(owner, name, wrapped)
