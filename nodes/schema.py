"""What schemas share."""

from __future__ import annotations

from ..ovis_core.native import compat

CATEGORY = "Ovis-U1"
ADVANCED = compat.ADVANCED  # of an input
found_by = compat.search_aliases  # of a schema
