"""Ovis-U1 as native ComfyUI nodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .ovis_core import dependencies

if TYPE_CHECKING:
    from .nodes import OvisU1Extension

WEB_DIRECTORY = "web"  # help pages of the nodes, and the script that keeps their text on the page


async def comfy_entrypoint() -> OvisU1Extension:
    """ComfyUI asks this for the pack's nodes; what it raises is logged in one line, and other packs go on."""
    dependencies.check_comfyui()
    dependencies.check_dependencies()
    try:
        from .nodes import OvisU1Extension
        from .ovis_core.native import folders, lora_keys
    except (ImportError, AttributeError) as error:
        if dependencies.is_about_comfyui(error):
            raise ImportError(f"{dependencies.too_old()} ({error})") from error
        raise

    folders.register()
    lora_keys.register()
    logging.info("Ovis-U1: ready; models belong in %s", folders.roots()[0])
    return OvisU1Extension()


if not dependencies.asks_for_nodes():
    logging.error(dependencies.too_old())


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
