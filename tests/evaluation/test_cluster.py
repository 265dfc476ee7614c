"""A run on two Ray nodes, one of which is killed: every record is made once, and the same as without Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import benchmark_data
from helpers.evaluation import TIMEOUT, files, is_worker, lines, run, same, wait_for_lines
from helpers.paths import ROOT, comfyui_path

RECORDS = 16


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes on this machine, each with resources for one worker, with Ray's default detection of dead nodes."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = pytest.importorskip("ray.cluster_utils", reason="several workers need Ray").Cluster()
    try:
        for options in ({"include_dashboard": False}, {}):
            cluster.add_node(num_cpus=1, object_store_memory=1 << 27, **options)
        yield cluster
    finally:
        cluster.shutdown()


def processes(node: Any) -> list[psutil.Process]:
    """A node's raylet and everything that it started."""
    (raylet,) = node.all_processes["raylet"]
    own = psutil.Process(raylet.process.pid)
    return [own, *own.children(recursive=True)]


def test_run_completes_after_a_node_is_killed(release: Path, cluster: Any, tmp_path: Path) -> None:
    rows = [{"prompt": f"thing {i}", "size": "64x64"} for i in range(RECORDS)]
    jobs = benchmark_data.write_lines(tmp_path / "jobs.jsonl", rows)
    line = [sys.executable, str(ROOT / "evaluation" / "evaluate.py"), "jobs", "--comfyui", str(comfyui_path())]
    line += ["--model", str(release), "--data", str(jobs), "--cpu", "--steps", "1"]
    alone, out = tmp_path / "alone", tmp_path / "out"
    run([*line, "--out", str(alone)])

    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    process = subprocess.Popen([*line, "--out", str(out), "--workers", "2"], env=environment)
    wait_for_lines(out, 2, process)
    nodes = cluster.list_all_nodes()
    assert [sum(map(is_worker, processes(node))) for node in nodes] == [1, 1]
    for lost in processes(nodes[1]):
        lost.kill()
    cluster.remove_node(nodes[1], allow_graceful=False)
    assert len(lines(out)) < RECORDS - 2, "it had nearly come to its end"
    assert process.wait(TIMEOUT) == 0
    same(out, alone)
    assert len(files(out)) == RECORDS
