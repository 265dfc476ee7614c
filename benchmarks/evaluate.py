"""The report's benchmarks, and any batch of jobs: makes what the official scorers read.

    python benchmarks/evaluate.py NAME --comfyui PATH --model PATH --data PATH --out DIR [--workers N]

Run it with the Python of that ComfyUI. Started again it goes on where it was; docs/evaluation.md says more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from starting import ROOT, parse, parser

sys.path.insert(1, str(ROOT / "scripts"))

from tqdm import tqdm

import workspace
from evaluation import schedule, scores
from evaluation.folder import RunFolder
from evaluation.jobs import size
from evaluation.names import BENCHMARKS, Benchmark
from evaluation.record import SETTINGS, Made, Record, Work, seeds, work_of
from evaluation.settings import data_hash, versions, weights_hash
from evaluation.sheet import write_sheet
from evaluation.worker import Setup
from import_core import import_core
from workspace import Ticker, UserError

FAILED = 3  # the exit code where some records failed
MOST_IN_A_ROW = 25  # failures after which something is wrong with more than the records
DEVICES = """
import torch
mps, xpu = torch.backends.mps.is_available(), hasattr(torch, "xpu") and torch.xpu.is_available()
print(torch.cuda.device_count() or int(mps or xpu))
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    line = parser(__doc__.split("\n")[0])
    line.add_argument("name", choices=list(BENCHMARKS))
    line.add_argument("--data", type=Path, required=True, help="the benchmark's records; docs/evaluation.md names them")
    line.add_argument("--out", type=Path, required=True, help="folder for the run")
    line.add_argument("--model", type=Path, required=True, help="folder of the release, or one file with all parts")
    line.add_argument("--weight-dtype", default="default", help="as in Ovis-U1 Load Model")
    line.add_argument("--limit", type=told(positive), help="only the first records")
    line.add_argument("--seed", type=int, default=0, help="each record's own seeds follow from it")
    line.add_argument("--workers", type=told(schedule.choice), default="1", help="1, a number, ray, or ray:NUMBER")
    line.add_argument("--retry-failed", action="store_true", help="try the records again that failed before")
    line.add_argument("--cpu", action="store_true", help="on the CPU, also where there is a GPU")
    own = line.add_argument_group("settings other than the report's")
    own.add_argument("--size", type=told(size), default={}, help="of images, such as 1024x768")
    own.add_argument("--steps", type=int, help="instead of 50")
    own.add_argument("--txt-cfg", type=float, help="instead of 5, and of 6 for edits")
    own.add_argument("--img-cfg", type=float, help="of edits, instead of 1.5")
    own.add_argument("--max-new-tokens", type=int, help="of answers in words, instead of 512")
    return parse(line)


def told(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """For an argument's type: what `read` says of a wrong one is what the user is told."""

    def argument(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return argument


def positive(text: str) -> int:
    """A whole number from 1. Raises ValueError."""
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{text!r} is not a whole number from 1")
    return int(text)


def main() -> int:
    """Reads the data, makes what is not there yet, checks and scores."""
    args = arguments()
    benchmark = BENCHMARKS[args.name]
    for name in ("comfyui", "model", "data", "out", "json"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).expanduser().resolve())
    if not args.data.exists():
        raise UserError(f"--data: {args.data} is not there")
    check_model(args.model, args.weight_dtype)
    total = count(benchmark, args)
    with Ticker("reading the weights for their hash"):
        run = made_of(benchmark, args)
    with RunFolder(args.out, run) as folder:
        return finish(benchmark, args, folder, make(benchmark, args, folder, total))


def check_model(model: Path, weight_dtype: str) -> None:
    """Raises UserError where it is no whole Ovis-U1, or cannot be loaded that way; only headers are read."""
    import_core()
    from ovis_core.checkpoint import CheckpointError, open_model
    from ovis_core.precision import PRECISIONS

    if not model.exists():
        raise UserError(f"--model: {model} is not there; name the folder of a release, or one file with all parts")
    try:
        open_model(model)
    except CheckpointError as error:
        raise UserError(f"--model: {error}") from error
    if weight_dtype not in PRECISIONS:
        raise UserError(f"--weight-dtype: {weight_dtype!r} is none of {', '.join(PRECISIONS)}")


def records(benchmark: Benchmark, args: argparse.Namespace) -> Iterator[Record]:
    """The records of this run, read anew."""
    return islice(benchmark.records(args.data), args.limit)


def count(benchmark: Benchmark, args: argparse.Namespace) -> int:
    """How many records there are. Raises UserError for what is wrong with them, before anything is made."""
    known: set[str] = set()
    files: dict[str, str] = {}  # a file's name, as systems that ignore case know it -> its record
    for record in records(benchmark, args):
        if record.id in known:
            raise UserError(f"--data: {args.data} has two records {record.id!r}; give each an id of its own")
        known.add(record.id)
        for name in (*record.files, *record.beside):
            other = files.setdefault(name.casefold(), record.id)
            if other != record.id:
                raise UserError(f"--data: records {other!r} and {record.id!r} would both write {name}; rename one")
    if not known:
        raise UserError(f"--data: {args.data} holds no records for {args.name}")
    return len(known)


def made_of(benchmark: Benchmark, args: argparse.Namespace) -> dict[str, Any]:
    """All that the results depend on; how many workers there are is not among it."""
    own = {"steps": args.steps, "txt_cfg": args.txt_cfg, "img_cfg": args.img_cfg, "max_new_tokens": args.max_new_tokens}
    own = {name: value for name, value in {**own, **args.size}.items() if value is not None}
    settings = {
        task: {name: own.get(name, value) for name, value in SETTINGS[task].items()} for task in benchmark.tasks
    }
    unused = own.keys() - {name for task in settings.values() for name in task}
    if unused:
        raise UserError(f"--{sorted(unused)[0].replace('_', '-')}: {args.name} has no such setting; leave it out")
    return {
        "benchmark": args.name,
        "seed": args.seed,
        "settings": settings,
        "weight_dtype": args.weight_dtype,
        "data_sha256": data_hash(args.data, benchmark.data),
        "weights_sha256": weights_hash(args.model),
        "versions": versions(args.comfyui),
    }


def make(benchmark: Benchmark, args: argparse.Namespace, folder: RunFolder, total: int) -> dict[str, Any]:
    """Runs every record that is not done, and measures it.

    scheduling_ms is the median over records of all time from reading one to its last file, but for ComfyUI's own.
    """
    todo = [
        record.id for record in records(benchmark, args) if not folder.is_done(record, failed_too=not args.retry_failed)
    ]
    if not todo:
        return {}
    with Ticker("starting ComfyUI"):
        workers = schedule.start(setup(args, folder.run), args.workers)
    overhead: list[float] = []
    began = time.monotonic()
    begun: dict[str, float] = {}
    wanted = set(todo)
    failures = 0
    bar = tqdm(
        total=total, initial=total - len(todo), desc=args.name, unit="record", mininterval=1.0, dynamic_ncols=True
    )

    def keep(record: Record, made: Made) -> None:
        nonlocal failures
        folder.keep(record, made, seeds(record, args.seed))
        bar.update()
        failures = failures + 1 if made.error else 0
        if failures == MOST_IN_A_ROW:
            raise UserError(
                f"{failures} records in a row failed, the last: {made.error}; see to it, then start again with "
                "--retry-failed"
            )

    with bar, contextlib.closing(tasks(benchmark, args, folder, wanted, begun, keep)) as waiting:
        for record, made in workers.run(waiting):
            keep(record, made)
            overhead.append(time.monotonic() - begun.pop(record.id) - made.seconds)
    wall = time.monotonic() - began
    return {
        "workers": workers.count,
        "made_now": len(todo),
        "seconds": round(wall, 3),
        "records_a_second": round(len(todo) / wall, 4),
        "scheduling_ms": round(1e3 * statistics.median(overhead or [0.0]), 1),
    }


def tasks(
    benchmark: Benchmark,
    args: argparse.Namespace,
    folder: RunFolder,
    wanted: set[str],
    begun: dict[str, float],
    keep: Callable[[Record, Made], None],
) -> Iterator[tuple[Record, Work]]:
    """The work of each record that is wanted, with its pictures read when a worker is there to take it."""
    for record in records(benchmark, args):
        if record.id not in wanted:
            continue
        begun[record.id] = time.monotonic()
        try:
            work = work_of(record, folder.run["settings"], args.seed)
        except (OSError, ValueError) as error:
            keep(record, Made(error=f"its image cannot be read: {error}"))
            continue
        yield record, work


def setup(args: argparse.Namespace, run: dict[str, Any]) -> Setup:
    """What workers start with."""
    cpu = args.cpu or not int(subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, check=True).stdout)
    return Setup(args.comfyui, args.model, args.weight_dtype, cpu, run["versions"], run["weights_sha256"])


def finish(benchmark: Benchmark, args: argparse.Namespace, folder: RunFolder, measured: dict[str, Any]) -> int:
    """Checks, scores, and says what is there; the exit code."""
    results = {
        record.id: folder.results[record.id] for record in records(benchmark, args) if record.id in folder.results
    }
    failed = {name: result["error"] for name, result in results.items() if "error" in result}
    summary = {"records": len(results), "failed": len(failed), **measured}
    wrong = scores.layout(folder.path, records(benchmark, args), results)
    if args.name == "vqa":
        scores.predictions(folder.path / "predictions.tsv", records(benchmark, args), results)
        summary |= scores.answers(records(benchmark, args), results)
    folder.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    if args.json:
        args.json.write_text(json.dumps(summary), encoding="utf-8")
    told = f"{len(results) - len(failed)} of {len(results)} records; {described(folder.run, args.model)}"
    sheet = write_sheet(folder.path, f"Ovis-U1, {args.name}", told, records(benchmark, args), results)
    say(folder, summary, sheet, [*(f"{name}: {error}" for name, error in failed.items()), *wrong])
    if benchmark.score:
        width = folder.run["settings"].get("image", {}).get("width")
        print(benchmark.score.format(out=folder.path, width=width))
    return FAILED if failed or wrong else 0


def described(run: dict[str, Any], model: Path) -> str:
    """What a run is made of, in a line."""
    parts = [f"{model.name}, weight_dtype {run['weight_dtype']}, seed {run['seed']}"]
    for task, settings in run["settings"].items():
        parts.append(f"{task}: {', '.join(f'{name} {value}' for name, value in settings.items() if value)}")
    return "; ".join(parts)


def say(folder: RunFolder, summary: dict[str, Any], sheet: Path, problems: Iterable[str]) -> None:
    """The end of a run, on the console."""
    print(f"{summary['records'] - summary['failed']} of {summary['records']} records are in {folder.path}")
    if "made_now" in summary:
        print(
            f"{summary['made_now']} of them now, {summary['records_a_second']:.2f} a second (workers: "
            f"{summary['workers']}); scheduling took {summary['scheduling_ms']:.0f} ms a record"
        )
    if "right" in summary:
        print(f"right: {summary['right']:.1%} of {summary['questions']} questions")
    print(f"look through them: {sheet}")
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(workspace.guarded(main))
