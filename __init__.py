"""Ovis-U1 as native ComfyUI nodes."""

from .nodes import OvisU1Extension
from .ovis_core.native import folders, lora_keys

WEB_DIRECTORY = "web"  # help pages of the nodes

folders.register()
lora_keys.register()


async def comfy_entrypoint() -> OvisU1Extension:
    """ComfyUI asks this for the pack's nodes."""
    return OvisU1Extension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
