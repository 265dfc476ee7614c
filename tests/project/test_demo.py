"""The demo command."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from comfy_server import HOST, USUAL_PORT, usual_port
from helpers.paths import ROOT, comfyui_path


def test_error_for_a_broken_release_leaves_no_link(release: Path, tmp_path: Path) -> None:
    home, broken = tmp_path / "home", Path(shutil.copytree(release, tmp_path / "broken"))
    weights = broken / "model-00002-of-00002.safetensors"
    command = [sys.executable, ROOT / "scripts" / "demo_run.py", "--comfyui", comfyui_path(), "--where", "here"]
    command += ["--model", broken]
    weights.write_bytes(weights.read_bytes()[:-100])
    for words in ("model-00002-of-00002.safetensors", "lacks model-00002-of-00002.safetensors"):
        ran = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "OVIS_U1_HOME": str(home)},
        )
        assert ran.returncode == 1
        (said,) = ran.stderr.splitlines()
        assert said.startswith(f"error: --model: {broken}")
        assert words in said
        assert not list((home / "base" / "models").rglob("broken*"))
        weights.unlink(missing_ok=True)


def test_error_for_an_empty_text() -> None:
    for option in ("--prompt", "--edit", "--question"):
        command = [sys.executable, str(ROOT / "scripts" / "demo.py"), f"{option}= "]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 2
        assert f"{option}: expected text, got none" in ran.stderr


def test_used_ports_are_skipped() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first = usual_port()
        assert first >= USUAL_PORT
        other.bind(("", first))
        other.listen()
        assert usual_port() > first
    with socket.create_server((HOST, first)):
        assert usual_port() > first
