"""The benchmarks run, and both sides write the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT, comfyui_path
from ovis_core import layout
from ovis_core.release import RELEASE


def test_understand(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, ROOT / "benchmarks" / "understand.py", "--comfyui", comfyui_path(), "--cpu", "--small"]
    options = ["--dtype", "float32", "--images", "1", "--tokens", "4", "--repeat", "1", "--json", out]
    ran = subprocess.run([*map(str, command + options)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    ours, generate = json.loads(out.read_text())
    assert (ours["side"], generate["side"]) == ("ours", "generate")
    assert ours["tokens"] == generate["tokens"]
    assert len(ours["tokens"]) == 4
    assert ours["positions"] == generate["positions"]
    assert ours["speed"] > 0
    assert "| 1 |" in ran.stdout


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's memory this way")
def test_loading_takes_little_more_than_the_weights(tmp_path: Path) -> None:
    """The VAE is kept in float32, and it is a larger part of this model than of the full one."""
    out = tmp_path / "memory.json"
    command = [sys.executable, ROOT / "benchmarks" / "loading.py", "--comfyui", comfyui_path(), "--small"]
    command += ["--weight-dtype", "bf16", "--json", out]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(out.read_text())
    vae = 2 * sum(torch.Size(shape).numel() for shape in layout.vae_shapes(RELEASE.vae).values())
    assert found["kept"] == pytest.approx(found["file"] + vae, rel=0.1)
    assert found["peak"] < 1.1 * found["file"] + 2 * vae
