"""Ovis-U1 as native ComfyUI nodes."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nodes import OvisU1Extension

WEB_DIRECTORY = "web"  # help pages of the nodes, and the page's two scripts
COMFYUI = "0.3.75"  # the oldest ComfyUI that the pack is tested on


async def comfy_entrypoint() -> OvisU1Extension:
    """Returns the pack's nodes to ComfyUI, which logs an error in one line and loads the other packs."""
    try:
        from .nodes import OvisU1Extension
        from .ovis_core.native.model_list import folders
        from .ovis_core.native.wrapped_core import core_loaders, lora_keys, saving
    except (ImportError, AttributeError) as error:
        module = error.name if isinstance(error, ImportError) else getattr(error.obj, "__name__", None)
        if (module or "").startswith("comfy"):
            raise ImportError(_lacking(error)) from error
        raise

    folders.register()
    lora_keys.register()
    core_loaders.register()
    saving.register()
    logging.info("Ovis-U1: the nodes are loaded; put models into %s.", folders.roots()[0])
    return OvisU1Extension()


def _lacking(error: Exception) -> str:
    """The message for a ComfyUI that is too old, or so new that it has moved a part that the pack imports."""
    return (
        f"Ovis-U1: ComfyUI {_version('of an unknown version')} lacks something that the pack needs ({error}); update "
        f"ComfyUI to {COMFYUI} or newer, or the pack if ComfyUI is newer."
    )


def _version(unknown: str) -> str:
    return getattr(sys.modules.get("comfyui_version"), "__version__", unknown)


def _calls_entrypoint() -> bool:
    """Whether this ComfyUI calls `comfy_entrypoint`. Older versions skip the pack without an error message."""
    try:
        return find_spec("comfy_api.latest") is not None
    except ModuleNotFoundError:
        return False


if not _calls_entrypoint():
    logging.error("Ovis-U1: expected ComfyUI %s or newer, got %s; update ComfyUI.", COMFYUI, _version("an older one"))


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
