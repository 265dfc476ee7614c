"""Paths of the checkout and of the ComfyUI under test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"


def comfyui_path() -> Path:
    path = os.environ.get("COMFYUI_PATH")
    if not path or not (Path(path) / "main.py").is_file():
        pytest.fail("COMFYUI_PATH does not name a ComfyUI; run the tests with: python scripts/test.py", pytrace=False)
    return Path(path)
