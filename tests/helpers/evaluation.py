"""Runs of evaluation/evaluate.py, and the files in their folders."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

TIMEOUT = 300


def run(line: list[str], code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def start(line: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def lines(out: Path) -> list[dict[str, Any]]:
    file = out / "results.jsonl"
    return [json.loads(line) for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def wait_for_lines(out: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not (out / "results.jsonl").is_file() or len(lines(out)) < count:
        assert process.poll() is None, "it ended before it was to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(out: Path) -> dict[str, bytes]:
    """The files that scorers read."""
    kept = [path for folder in ("images", "ovis-u1") for path in (out / folder).rglob("*") if path.is_file()]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in kept}


def said(out: Path) -> dict[str, Any]:
    """The answers by id; each id occurs once."""
    found = lines(out)
    results = {
        line["id"]: {key: line.get(key) for key in ("answer", "probabilities", "seeds", "error")} for line in found
    }
    assert len(results) == len(found)
    return results


def same(out: Path, other: Path) -> None:
    assert files(out) == files(other)
    assert said(out) == said(other)


def is_worker(process: psutil.Process) -> bool:
    try:
        return any(name.startswith("ray::RemoteWor") for name in (process.name(), *process.cmdline()[:1]))
    except psutil.Error:
        return False
