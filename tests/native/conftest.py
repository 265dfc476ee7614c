"""ComfyUI in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def loaded(comfyui: Path, release: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the small model."""
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model

    return load(open_model(release))
