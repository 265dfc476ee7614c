"""Errors of the small model's commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT, comfyui_path


def run(script: str, *arguments: str) -> list[str]:
    """The lines that a command which fails writes to stderr."""
    command = [sys.executable, str(ROOT / "small_model" / script), *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "COMFYUI_PATH"}
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 1, ran.stderr
    return ran.stderr.splitlines()


@pytest.mark.parametrize(
    ("script", "names", "unknown", "known"),
    [
        ("compare.py", "steps,step", "step", "default, steps, guidance, edit"),
        ("formats.py", "int3", "int3", "bf16, fp8_e4m3fn, fp8_scaled"),
    ],
)
def test_error_for_an_unknown_name_in_only(script: str, names: str, unknown: str, known: str) -> None:
    *_, said = run(script, "--comfyui", str(comfyui_path()), "--only", names)
    assert said.startswith(f"error: --only: expected one or more of {known}")
    assert said.endswith(f", got {unknown!r}; separate them with commas.")


@pytest.mark.parametrize("script", ["compare.py", "formats.py"])
def test_error_for_a_folder_that_is_not_a_comfyui(script: str, tmp_path: Path) -> None:
    (said,) = run(script, "--comfyui", str(tmp_path))
    assert said.startswith(f"error: {tmp_path} is not a ComfyUI folder")
