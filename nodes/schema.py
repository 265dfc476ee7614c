"""What schemas share, and what newer ComfyUIs can show, left out where this one cannot."""

from __future__ import annotations

from inspect import signature
from typing import Any

from comfy_api.latest import io

CATEGORY = "Ovis-U1"
History = io.Custom("OVIS_U1_HISTORY")
# Of an input: behind "Show advanced".
ADVANCED: dict[str, Any] = {"advanced": True} if "advanced" in signature(io.Float.Input.__init__).parameters else {}


def found_by(*words: str) -> dict[str, Any]:
    """For a schema: other words that the node is found by in the page's search."""
    return {"search_aliases": list(words)} if "search_aliases" in io.Schema.__dataclass_fields__ else {}
