"""Ovis-U1 as native ComfyUI nodes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from .ovis_core.dependencies import check_dependencies

if TYPE_CHECKING:
    from .nodes import OvisU1Extension

WEB_DIRECTORY = "web"  # help pages of the nodes, and the script that keeps their text on the page


async def comfy_entrypoint() -> OvisU1Extension:
    """ComfyUI asks this for the pack's nodes; what it raises is logged in one line, and other packs go on."""
    check_dependencies()
    from .nodes import OvisU1Extension
    from .ovis_core.native import folders, lora_keys

    folders.register()
    lora_keys.register()
    logging.info("Ovis-U1: ready; models belong in %s", folders.roots()[0])
    return OvisU1Extension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
