"""Imports `ovis_core` from this checkout without the nodes and without ComfyUI."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "ovis_core"
PLAIN = ("weights.config", "weights.layout", "text.prompts")  # need nothing but Python


def import_core() -> ModuleType:
    """`ovis_core`, with its modules `PLAIN` loaded.

    The checkout's root must stay off `sys.path`: its `nodes` would hide ComfyUI's module of that name.
    """
    core = sys.modules.get("ovis_core")
    if core is None:
        spec = importlib.util.spec_from_file_location(
            "ovis_core", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        assert spec is not None
        assert spec.loader is not None
        core = importlib.util.module_from_spec(spec)
        sys.modules["ovis_core"] = core
        spec.loader.exec_module(core)
    for name in PLAIN:
        importlib.import_module(f"ovis_core.{name}")
    return core
