"""The report's benchmarks, and any batch of jobs: makes what the official scorers read.

    python benchmarks/evaluate.py NAME --comfyui PATH --model PATH --data PATH --out DIR [--workers N]
    python benchmarks/evaluate.py shapes --comfyui PATH --out DIR       the built-in model's own, scored here

Run it with the Python of that ComfyUI. Started again it goes on where it was; docs/evaluation.md says more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from starting import ROOT, parse, parser

sys.path.insert(1, str(ROOT / "scripts"))

import workspace
from console import Ticker, UserError, guarded
from evaluation import schedule, scores, shapes
from evaluation.benchmarks import BENCHMARKS
from evaluation.contact_sheet import contact_sheet
from evaluation.fingerprint import versions, weights_hash
from evaluation.folder import RunFolder
from evaluation.run import Run
from evaluation.settings import settings_of, size
from evaluation.worker import Setup
from import_core import import_core

FAILED = 3  # the exit code where some records failed
DEVICES = """
import torch
mps, xpu = torch.backends.mps.is_available(), hasattr(torch, "xpu") and torch.xpu.is_available()
print(torch.cuda.device_count() or int(mps or xpu))
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    line = parser(__doc__.split("\n")[0])
    line.add_argument("name", choices=list(BENCHMARKS))
    line.add_argument("--data", type=Path, help="the benchmark's records; docs/evaluation.md names them")
    line.add_argument("--out", type=Path, required=True, help="folder for the run")
    line.add_argument(
        "--model",
        type=Path,
        help="folder of the release, or one file with all parts (default of shapes: the built-in model)",
    )
    line.add_argument("--weight-dtype", default="default", help="as in Ovis-U1 Load Model")
    line.add_argument("--limit", type=told(positive), help="only the first records; of shapes, cases of each task")
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
    args = parse(line)
    of_data = BENCHMARKS[args.name].of_data
    for name in ("model", "data"):
        if of_data and getattr(args, name) is None:
            line.error(f"--{name}: {args.name} needs it")
    if not of_data and args.data is not None:
        line.error(f"--data: {args.name} makes its cases by itself; leave it out")
    return args


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
    """Reads the data, makes what is not there yet, scores and shows it; the exit code."""
    args = arguments()
    benchmark = BENCHMARKS[args.name]
    for name in ("comfyui", "model", "data", "out", "json"):
        if getattr(args, name) is not None:
            setattr(args, name, getattr(args, name).expanduser().resolve())
    args.model = unpacked(args.model)
    if args.data is not None and not args.data.exists():
        raise UserError(f"--data: {args.data} is not there; name the benchmark's data")
    if args.json:
        need_writable(args.json)
    check_model(args.model, args.weight_dtype)
    own = {"steps": args.steps, "txt_cfg": args.txt_cfg, "img_cfg": args.img_cfg, "max_new_tokens": args.max_new_tokens}
    own = {name: value for name, value in {**own, **args.size}.items() if value is not None}
    settings = settings_of(args.name, benchmark.tasks, own, benchmark.usual)
    records = benchmark.records(args.data)
    with Ticker("reading the weights for their hash"):
        made_of = {
            "benchmark": args.name,
            "seed": args.seed,
            "settings": settings,
            "weight_dtype": args.weight_dtype,
            "weights_sha256": weights_hash(args.model),
            "versions": versions(args.comfyui),
        }
    with RunFolder(args.out, made_of) as folder:
        folder.need_only({record.id for record in records})
        run = Run(folder, records[: args.limit and args.limit * benchmark.each], settings, args.seed)
        with Ticker("checking what is there") if folder.results else nullcontext():
            todo = run.todo(args.retry_failed)
        measured = {}
        if todo:
            with Ticker("starting ComfyUI"):
                workers = schedule.start(setup(args, made_of), args.workers)
            measured = run.make(todo, workers, args.name)
        return finish(args, run, measured)


def unpacked(model: Path | None) -> Path:
    """The model; None and its packed file stand for the built-in one, which is unpacked into the cache folder.

    Raises UserError if that one is not there.
    """
    import_core()
    from ovis_core.weights import built_in
    from ovis_core.weights.safetensors_file import CheckpointError

    if model not in (None, built_in.FILE):
        return model
    if not built_in.is_there():
        raise UserError(f"--model: this copy of the pack lacks {built_in.FILE.name}; name a model")
    try:
        return built_in.unpack(workspace.home() / "built_in")
    except CheckpointError as error:
        raise UserError(str(error)) from error


def need_writable(file: Path) -> None:
    """Raises UserError now, rather than when all is made."""
    try:
        file.open("ab").close()
    except OSError as error:
        raise UserError(
            f"--json: {file} cannot be written ({error.strerror}); name a file in a folder that is there"
        ) from error


def check_model(model: Path, weight_dtype: str) -> None:
    """Raises UserError where it is no whole Ovis-U1, or cannot be loaded that way; only headers are read."""
    import_core()
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.precision import PRECISIONS
    from ovis_core.weights.safetensors_file import CheckpointError

    if not model.exists():
        raise UserError(f"--model: {model} is not there; name the folder of a release, or one file with all parts")
    try:
        open_model(model)
    except CheckpointError as error:
        raise UserError(f"--model: {error}") from error
    if weight_dtype not in PRECISIONS:
        raise UserError(f"--weight-dtype: {weight_dtype!r} is none of {', '.join(PRECISIONS)}")


def setup(args: argparse.Namespace, made_of: Mapping[str, Any]) -> Setup:
    """What workers start with."""
    cpu = args.cpu or not int(subprocess.run([sys.executable, "-c", DEVICES], capture_output=True, check=True).stdout)
    return Setup(args.comfyui, args.model, args.weight_dtype, cpu, made_of["versions"], made_of["weights_sha256"])


def finish(args: argparse.Namespace, run: Run, measured: dict[str, Any]) -> int:
    """Scores and shows what is there; the exit code."""
    folder, results = run.folder, run.results()
    failed = {name: result["error"] for name, result in results.items() if "error" in result}
    summary = {"records": len(results), "failed": len(failed), **measured}
    if args.name == "vqa":
        folder.write("predictions.tsv", scores.predictions(run.records, results).encode())
        summary |= scores.answers(run.records, results)
    if args.name == "shapes":
        judged = shapes.verdicts(folder.path, run.records, results)
        summary |= shapes.scores(run.records, judged)
        folder.write("scores.json", json.dumps(summary, indent=2).encode())
        results = {name: {**result, "verdict": judged[name]} for name, result in results.items()}
    folder.write("summary.json", json.dumps(summary, indent=2, ensure_ascii=False).encode())
    if args.json:
        args.json.write_text(json.dumps(summary), encoding="utf-8")
    told = f"{len(results) - len(failed)} of {len(results)} records; {described(folder.made_of, args.model)}"
    for name, page in contact_sheet(folder.path, f"Ovis-U1, {args.name}", told, run.records, results):
        folder.write(name, page.encode(errors="xmlcharrefreplace"))
    problems = [f"{name}: {error}" for name, error in failed.items()]
    problems += [f"{path}: no record makes this file; take it away" for path in folder.strangers()]
    say(folder.path, summary, problems)
    if args.name == "shapes":
        shapes.table(summary)
    score = BENCHMARKS[args.name].score
    if score:
        print(score.format(out=folder.path, width=run.settings.get("image", {}).get("width")))
    return FAILED if problems else 0


def described(made_of: Mapping[str, Any], model: Path) -> str:
    """What a run is made of, in a line."""
    parts = [f"{model.name}, weight_dtype {made_of['weight_dtype']}, seed {made_of['seed']}"]
    for task, settings in made_of["settings"].items():
        parts.append(f"{task}: {', '.join(f'{name} {value}' for name, value in settings.items() if value)}")
    return "; ".join(parts)


def say(folder: Path, summary: dict[str, Any], problems: Iterable[str]) -> None:
    """The end of a run, on the console."""
    print(f"{summary['records'] - summary['failed']} of {summary['records']} records are in {folder}")
    if "made_now" in summary:
        print(
            f"{summary['made_now']} of them now, {summary['records_a_second']:.2f} a second (workers: "
            f"{summary['workers']}); scheduling took {summary['scheduling_ms']:.0f} ms a record"
        )
    if "right" in summary:
        print(f"right: {summary['right']:.1%} of {summary['questions']} questions")
    print(f"look through them: {folder / 'index.html'}")
    for problem in problems:
        print(f"failed: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(guarded(main))
