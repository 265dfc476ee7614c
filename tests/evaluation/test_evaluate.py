"""evaluation/evaluate.py from end to end: commands on the small model, also with killed processes and a full disk."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from helpers import benchmark_data
from helpers.benchmark_data import TWINS
from helpers.evaluation import TIMEOUT, files, is_worker, lines, run, said, same, start, wait_for_lines
from helpers.paths import ROOT, comfyui_path

FAILED = 3
SMALL = {
    "geneval": ("--size", "64x80", "--steps", "1"),
    "dpg": ("--size", "64x80", "--steps", "1"),
    "imgedit": ("--steps", "1"),
    "gedit": ("--steps", "1"),
    "vqa": ("--max-new-tokens", "4"),
    "jobs": ("--steps", "1"),
}
MADE = {
    "geneval": [
        f"images/{prompt}/{file}"
        for prompt in ("00000", "00001")
        for file in ("metadata.jsonl", *(f"samples/{sample:05d}.png" for sample in range(4)))
    ],
    "dpg": ["images/0.png", "images/COCOval2014000000012.png", "images/partiprompts9.png"],
    "imgedit": ["images/1082.png", "images/673.png"],
    "gedit": [
        f"ovis-u1/fullset/{name}{end}.png"
        for name in ("color_alter/en/a1", "ps_human/en/b2")
        for end in ("", "_SRCIMG")
    ],
    "vqa": [],
    "jobs": [
        f"images/{name}.png"
        for name in (*(f"{i:05d}" for i in range(8)), *(f"three_0{i}" for i in range(3)), *TWINS[:4])
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The made-up data of each benchmark."""
    pytest.importorskip("pyarrow", reason="GEdit-Bench is published as parquet")
    folder = tmp_path_factory.mktemp("data")
    return {name: getattr(benchmark_data, name)(folder / name) for name in SMALL}


@pytest.fixture(scope="module")
def command(release: Path, data: dict[str, Path]) -> Callable[..., list[str]]:
    """The command line of a benchmark, with few steps of small images."""

    def line(name: str, out: Path, *options: str) -> list[str]:
        script = [sys.executable, str(ROOT / "evaluation" / "evaluate.py"), name, "--comfyui", str(comfyui_path())]
        where = ["--model", str(release), "--data", str(data[name]), "--out", str(out)]
        return [*script, *where, "--cpu", *SMALL[name], *options]

    return line


@pytest.fixture(scope="module")
def alone(command: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a benchmark that one worker ran without a break."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp("alone") / name
            run(command(name, out), FAILED if name == "jobs" else 0)
            made[name] = out
        return made[name]

    return folder


@pytest.mark.parametrize("name", SMALL)
def test_one_worker_writes_the_official_layout(alone: Callable[[str], Path], name: str) -> None:
    out = alone(name)
    assert sorted(files(out)) == sorted(MADE[name])
    assert "<img loading" in (out / "index.html").read_text(encoding="utf-8")
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["failed"] == (3 if name == "jobs" else 0)


# The driver handles readers and layouts, so two benchmarks are enough: jobs has every task.
@pytest.mark.parametrize("name", ["geneval", "jobs"])
def test_two_workers_write_the_same_files(
    alone: Callable[[str], Path], command: Any, tmp_path: Path, name: str
) -> None:
    pytest.importorskip("ray", reason="several workers need Ray")
    out = tmp_path / name
    process = start(command(name, out, "--workers", "2"))
    if name == "jobs":
        # In the middle of it a worker is killed.
        wait_for_lines(out, 3, process)
        workers = [child for child in psutil.Process(process.pid).children(recursive=True) if is_worker(child)]
        assert len(workers) == 2
        workers[0].kill()
    assert process.wait(TIMEOUT) == (FAILED if name == "jobs" else 0)
    same(out, alone(name))


def test_images_have_the_form_that_scorers_expect(alone: Callable[[str], Path]) -> None:
    size = {name: Image.open(alone(name) / MADE[name][-1]).size for name in ("geneval", "dpg", "imgedit")}
    assert size == {"geneval": (64, 80), "dpg": (128, 160), "imgedit": benchmark_data.SIDES}
    edited, source = (Image.open(alone("gedit") / name).size for name in MADE["gedit"][:2])
    assert (edited, source) == (benchmark_data.SIDES, (32, 40))
    sheet = Image.open(alone("dpg") / MADE["dpg"][0])
    quarters = [sheet.crop((x, y, x + 64, y + 80)).tobytes() for y in (0, 80) for x in (0, 64)]
    assert len(set(quarters)) == 4
    metadata = (alone("geneval") / MADE["geneval"][0]).read_text(encoding="utf-8")
    assert json.loads(metadata) == {
        "tag": "counting",
        "include": [{"class": "cow", "count": 1}],
        "prompt": "a photo of a cow",
    }


def test_answers_have_the_format_of_vlmevalkit(alone: Callable[[str], Path]) -> None:
    out = alone("vqa")
    with (out / "predictions.tsv").open(encoding="utf-8", newline="") as source:
        rows = list(csv.DictReader(source, delimiter="\t"))
    assert [row["index"] for row in rows] == ["7", "1000007", "8"]
    assert {"index", "question", "answer", "prediction"} <= rows[0].keys()
    assert "image" not in rows[0]
    assert {row["prediction"] for row in rows[:2]} <= {"A", "B"}
    assert rows[2]["prediction"]
    probabilities = said(out)["7"]["probabilities"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert rows[0]["prediction"] == max(probabilities, key=probabilities.__getitem__)
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["scores"]["answers"]["cases"] == 2


def test_errors_of_failed_records_are_in_the_results(alone: Callable[[str], Path], data: dict[str, Path]) -> None:
    results = said(alone("jobs"))
    wrong = f"{data['jobs']}, line 21"
    assert [name for name, result in results.items() if result["error"]] == ["broken", "missing", wrong]
    assert "task: expected one of" in results[wrong]["error"]
    assert "image" in results["broken"]["error"]
    assert "nowhere.png" in results["missing"]["error"]
    assert results["three"]["seeds"] == [5, 6, 7]


def test_equal_records_get_equal_results(alone: Callable[[str], Path]) -> None:
    """One after the other on one worker, whose ComfyUI has the first in its cache."""
    results, images = said(alone("jobs")), files(alone("jobs"))
    for first, second in zip(TWINS[::2], TWINS[1::2], strict=True):
        pictures = [images.get(f"images/{name}.png") for name in (first, second)]
        assert pictures[0] == pictures[1]
        assert results[first] == results[second]
        assert pictures[0] or results[first]["answer"]


def test_killed_run_resumes(alone: Callable[[str], Path], command: Any, tmp_path: Path) -> None:
    out = tmp_path / "jobs"
    process = start(command("jobs", out))
    wait_for_lines(out, 4, process)
    psutil.Process(process.pid).suspend()
    # No other run may write to the folder meanwhile.
    assert "another run is writing" in run(command("jobs", out), 1).stderr
    process.kill()
    process.wait()
    assert len(lines(out)) < len(lines(alone("jobs"))), "it had come to its end"
    before = {path: path.stat().st_mtime_ns for path in (out / "images").rglob("*.png")}
    kept = {name for line in lines(out) for name in line.get("files", ())}
    # As after a power failure: a partial line.
    with (out / "results.jsonl").open("ab") as log:
        log.write(b'{"id": "0000')
    run(command("jobs", out), FAILED)
    same(out, alone("jobs"))
    assert all(path.stat().st_mtime_ns == t for path, t in before.items() if path.relative_to(out).as_posix() in kept)
    # Nothing is left to do, and a run with other settings is rejected.
    run(command("jobs", out), FAILED)
    assert "records_made" not in json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert "seed is 1 and was 0" in run(command("jobs", out, "--seed", "1"), 1).stderr


def test_corrected_records_and_damaged_files_are_made_again(command: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"thing {i}", "size": "64x64"} for i in range(2)]
    asked = command("jobs", tmp_path / "out")
    asked[asked.index("--data") + 1] = str(tmp_path / "jobs.jsonl")
    images = [tmp_path / "out" / "images" / f"{i:05d}.png" for i in range(3)]
    benchmark_data.write_lines(tmp_path / "jobs.jsonl", [*rows, {"prompt": "thing 2", "size": 64}])
    assert "jobs.jsonl, line 3: size: expected WIDTHxHEIGHT" in run(asked, FAILED).stderr
    first, kept = images[0].read_bytes(), images[1].stat().st_mtime_ns
    images[0].write_bytes(first[:100])
    rows.append({"prompt": "thing 2", "size": "64x64"})
    benchmark_data.write_lines(tmp_path / "jobs.jsonl", rows)
    run(asked)
    assert images[0].read_bytes() == first
    assert images[1].stat().st_mtime_ns == kept
    assert images[2].is_file()
    # Records beyond a smaller limit are not an error.
    run([*asked, "--limit", "1"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["records"] == 1
    benchmark_data.write_lines(tmp_path / "jobs.jsonl", [{**rows[0], "prompt": "another"}, *rows[1:]])
    assert "record '00000' has changed since it was made" in run(asked, 1).stderr
    assert images[0].read_bytes() == first
    benchmark_data.write_lines(tmp_path / "jobs.jsonl", rows[:1])
    assert "record '00001' in " in run(asked, 1).stderr


def test_error_if_a_source_image_has_changed(
    alone: Callable[[str], Path], command: Any, data: dict[str, Path], tmp_path: Path
) -> None:
    out = shutil.copytree(alone("imgedit"), tmp_path / "out")
    moved = shutil.copytree(data["imgedit"].parent, tmp_path / "data")
    asked = command("imgedit", out)
    asked[asked.index("--data") + 1] = str(moved / "basic_edit.json")
    run(asked)
    assert len(lines(out)) == 2, "nothing was to be made"
    (moved / "images" / "style" / "blue.png").write_bytes(benchmark_data.picture("green"))
    assert "record '673' has changed since it was made" in run(asked, 1).stderr
    same(out, alone("imgedit"))


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_run_resumes_after_a_full_disk(alone: Callable[[str], Path], command: Any, tmp_path: Path) -> None:
    out = tmp_path / "dpg"
    out.mkdir()
    shutil.copy(alone("dpg") / "run.json", out)
    (out / ".partial").symlink_to("/dev/full")
    assert "No space left on device" in run(command("dpg", out), 1).stderr
    assert not (out / "results.jsonl").exists()
    run(command("dpg", out))
    same(out, alone("dpg"))


def test_scheduling_takes_less_than_20_ms(alone: Callable[[str], Path]) -> None:
    summary = json.loads((alone("jobs") / "summary.json").read_text(encoding="utf-8"))
    assert summary["records_per_second"] > 0
    assert summary["scheduling_ms"] < 20


def test_shapes_are_generated_and_scored(release: Path, tmp_path: Path) -> None:
    out = tmp_path / "shapes"
    line = [sys.executable, str(ROOT / "evaluation" / "evaluate.py"), "shapes", "--comfyui", str(comfyui_path())]
    line += ["--model", str(release), "--out", str(out), "--cpu", "--steps", "1", "--max-new-tokens", "2"]
    printed = run([*line, "--limit", "1"]).stdout
    tasks = ["paint", "edit", "masked", "ask", "describe", "judge", "chat"]
    assert [result["id"] for result in lines(out)] == [f"{task}/000" for task in tasks]
    assert set(files(out)) == {f"images/{task}/000.png" for task in tasks[:3]}
    scores = json.loads((out / "summary.json").read_text(encoding="utf-8"))["scores"]
    assert [name for name in scores if " " not in name] == tasks
    assert all(share["cases"] == 1 for share in scores.values())
    assert scores["paint"]["right"] == 0  # of random weights
    assert re.search(r"^paint +0 of 1 \(0%\)$", printed, re.MULTILINE)
    assert "wrong: " in (out / "index.html").read_text(encoding="utf-8")

    before = files(out)
    run([*line, "--limit", "2"])
    assert len(lines(out)) == 2 * len(tasks)
    assert files(out).items() > before.items()
    for wrong in (["geneval", *line[3:]], [*line[2:], "--data", str(tmp_path)]):
        refused = subprocess.run([*line[:2], *wrong], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "--data: " in refused.stderr


@pytest.mark.parametrize(
    ("flags", "options", "code", "message"),
    [
        ([], ["--limit", "-1"], 2, "argument --limit: expected a whole number of at least 1, got '-1'; use 1 or more"),
        (
            [],
            ["--workers", "0"],
            2,
            "argument --workers: expected a whole number of at least 1, got '0'; use 1 or more",
        ),
        # Without site-packages this Python has nothing that ComfyUI needs.
        (
            ["-S"],
            [],
            1,
            f"error: {sys.executable} does not have the package PIL; run this with the Python of your ComfyUI.",
        ),
    ],
)
def test_errors_before_comfyui_starts(
    flags: list[str], options: list[str], code: int, message: str, tmp_path: Path
) -> None:
    script, out = ROOT / "evaluation" / "evaluate.py", tmp_path / "out"
    line = [sys.executable, *flags, script, "shapes", "--comfyui", comfyui_path(), "--out", out, *options]
    refused = run([*map(str, line)], code)
    assert refused.stderr.splitlines()[-1].endswith(message)
    assert "Traceback" not in refused.stderr
    assert not out.exists()
