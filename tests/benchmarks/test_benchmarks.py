"""The benchmarks run, all variants give the same results, and the decoder's counts do not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import run as benchmark
from full_size import SHALLOW
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import layout


def measured(script: str, out: Path, *options: str) -> Any:
    """A benchmark's JSON, and its output."""
    command = [sys.executable, ROOT / "benchmarks" / script, "--comfyui", comfyui_path(), "--json", out, *options]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(out.read_text()), ran.stdout


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's memory this way")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    """The VAE is kept in float32, and it is a larger part of this model than of the full one."""
    found, _ = measured("load_memory.py", tmp_path / "memory.json", "--small", "--weight-dtype", "bf16")
    vae = 2 * sum(torch.Size(shape).numel() for shape in layout.vae_shapes(SHALLOW.vae).values())
    assert found["kept"] == pytest.approx(found["file"] + vae, rel=0.1)
    assert found["peak"] < 1.1 * found["file"] + 2 * vae


def test_benchmark_run(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--sizes", "64x64", "--edit-side", "64", "--steps", "2", "--tokens", "2"]
    options += ["--repeat", "1", "--variants", "ours", "EasyCache", "LazyCache", "interval", "generate"]
    options += ["--rows", "image,", "1 image", "edit", "pass", "conditions", "VAE", "load"]
    found, printed = measured("run.py", tmp_path / "rows.json", *options)
    rows: dict[str, dict[str, Any]] = {}
    for row in found["rows"]:
        rows.setdefault(row["name"], {})[row["variant"]] = row
    assert list(rows) == [
        "load in a new process",
        "text to image, 64x64",
        "text to image, 64x64, batch 2",
        "text to image, 64x64, 4 steps",
        "edit, 64x64",
        "one pass, 64x64",
        "both conditions of a text to image, 64x64",
        "VAE decode, 64x64",
        "VAE encode, 64x64",
        "about 1 image, first token",
        "about 1 image, a token",
    ]
    assert {"ours", "EasyCache", "LazyCache"} <= set(rows["text to image, 64x64"])
    assert {"ours", "EasyCache", "LazyCache"} <= set(rows["edit, 64x64"])
    assert set(rows["about 1 image, a token"]) == {"ours", "generate"}
    for name, variants in rows.items():
        assert f"| {name} |" in printed
        for row in variants.values():
            assert min(row["seconds"]) > 0
    # Two steps are four passes: the arithmetic that was counted adds up.
    floors = {name: variants["ours"]["floor"] for name, variants in rows.items()}
    made = floors["both conditions of a text to image, 64x64"] + floors["VAE decode, 64x64"]
    assert floors["text to image, 64x64"] == pytest.approx(made + 4 * floors["one pass, 64x64"], rel=0.1)
    assert found["errors"] == {"answer about an image, compared with generate": 0.0}
    weights = found["weights"]["ours"]
    assert weights < rows["one pass, 64x64"]["ours"]["peak"] < rows["text to image, 64x64"]["ours"]["peak"]
    assert "seconds" not in printed  # times on a CPU are not printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "0x16"], "--sizes: expected WIDTHxHEIGHT, such as 1024x768, got '0x16'"),
        (["--sizes", "40x64"], "--sizes, --edit-side: expected multiples of 16 pixels, got 40"),
        (["--repeat", "0"], "--repeat: expected at least 1, got 0"),
        (["--rows", "(x"], "--rows: expected a regular expression, got '(x'"),
        (["--tokens", "1"], "--tokens: expected at least 2, got 1"),
        (["--reference", "nowhere"], "--reference: nowhere has no modeling_ovis_u1.py"),
        (["--json", "/nowhere/x.json"], "--json: the folder /nowhere does not exist"),
    ],
)
def test_errors_for_wrong_arguments(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--comfyui", str(comfyui_path()), *options])
    with pytest.raises(SystemExit) as left:
        benchmark.main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_table_of_first_passes(comfyui: Path) -> None:
    from measuring import Measured
    from tables import first_table

    rows = [Measured("a pass", "ours", [2.0, 1.0, 3.0]), Measured("a pass", "compiled", [1.0], first=40.0)]
    assert "| a pass | 20 |" in first_table(rows, seconds=False)
    assert "| a pass | 40.00 s (20) |" in first_table(rows, seconds=True)


def test_counts_at_full_size(tmp_path: Path) -> None:
    """Counts at full size without weights, which are the same on every device."""
    found, printed = measured("run.py", tmp_path / "counts.json", "--count")
    text, edit, refiner = found["passes"]
    # Kernels and bytes as benchmarks/RESULTS.md gives them.
    assert text["flops"] == pytest.approx(7.76e12, rel=0.01)
    assert text["kernels"] <= 575
    assert text["bytes"] <= 21.1e9
    assert edit["kernels"] <= text["kernels"] + 5
    assert edit["bytes"] <= 36.7e9
    assert refiner["kernels"] <= 33

    graphs = found["graphs"]
    assert not any(graph["breaks"] for graph in graphs.values())
    assert graphs["whole decoder, first run"]["graphs"] <= 2
    assert graphs["whole decoder, third size"]["graphs"] <= 4
    # After two sizes, all others use the compiled graphs.
    assert graphs["whole decoder, fifth size"] == graphs["whole decoder, third size"]
    assert graphs["whole decoder, batch of 3"] == graphs["whole decoder, batch of 2"]
    # Separately compiled blocks: one graph per block, and one more for each kind of input.
    assert graphs["block by block, first run"]["graphs"] >= 2
    assert graphs["block by block, edit"]["graphs"] <= 5
    assert "| whole decoder, edit |" in printed
