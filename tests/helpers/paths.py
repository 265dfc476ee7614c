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


def shows_text_files() -> bool:
    """Whether the ComfyUI under test takes a text file as a result, as `compat.SHOWS_TEXT_FILES` says inside it."""
    file = comfyui_path() / "comfy_execution" / "jobs.py"
    return file.exists() and "TEXT_EXTENSIONS" in file.read_text(encoding="utf-8")
