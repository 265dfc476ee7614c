"""Definitions that several schemas use."""

from __future__ import annotations

from comfy_api.latest import io

from ..ovis_core.native import compat

CATEGORY = "Ovis-U1"
History = io.Custom("OVIS_U1_HISTORY")
LoopState = io.Custom("OVIS_U1_LOOP")
ADVANCED = compat.ADVANCED  # of an input
HIDDEN = compat.HIDDEN  # of a schema
found_by = compat.search_aliases  # of a schema
