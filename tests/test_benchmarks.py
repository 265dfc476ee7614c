"""The benchmarks run, and both sides write the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, comfyui_path


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
