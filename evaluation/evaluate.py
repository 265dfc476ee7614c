"""Runs a benchmark of the report, or any batch of jobs, and makes the files that the official scorers read.

    python evaluation/evaluate.py NAME --comfyui PATH --model PATH --data PATH --out DIR [--workers N]
    python evaluation/evaluate.py shapes --comfyui PATH --out DIR      the small model's cases, scored here

Run it with the Python of that ComfyUI. The same command resumes a run. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "scripts"))

from console import Ticker, UserError, guarded, lacks, positive_int

try:
    import outcome
    from comfyui_worker import Setup
    from driver import Driver
    from run_folder import identity, open_run
    from run_options import add_comfyui_option, checked_model, find_device
    from suites import SUITES, image_size
    from workers import InProcess, RayActors
except ModuleNotFoundError as error:
    sys.exit(lacks(error))

OWN = ("steps", "txt_cfg", "img_cfg", "max_new_tokens")


def arguments() -> argparse.Namespace:
    """The command line."""
    line = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    line.add_argument("name", choices=list(SUITES))
    add_comfyui_option(line)
    line.add_argument("--data", type=Path, help="the benchmark's records (docs/evaluation.md)")
    line.add_argument("--out", type=Path, required=True, help="folder for the run")
    line.add_argument("--model", type=Path, help="folder of a release, or a file (default: the built-in model)")
    line.add_argument("--weight-dtype", default="default", help="as in Ovis-U1 Load Model")
    line.add_argument("--limit", type=positive_int, help="number of records, or for shapes of cases of each task")
    line.add_argument("--seed", type=int, default=0, help="the seed of each record is derived from this one and its id")
    line.add_argument("--workers", type=positive_int, default=1, help="number of workers; more than one needs Ray")
    line.add_argument("--retry-failed", action="store_true", help="try failed records again")
    line.add_argument("--cpu", action="store_true", help="run on the CPU even if there is a GPU")
    own = line.add_argument_group("settings that replace the report's")
    own.add_argument("--size", type=image_size, default={}, help="such as 1024x768; sides are multiples of 16")
    own.add_argument("--steps", type=positive_int, help="denoising steps, instead of 50")
    own.add_argument("--txt-cfg", type=float, help="instead of 5, or of 6 for edits")
    own.add_argument("--img-cfg", type=float, help="for edits, instead of 1.5")
    own.add_argument("--max-new-tokens", type=positive_int, help="for answers in words, instead of 512")
    args = line.parse_args()
    if (args.data is None) != (args.name == "shapes"):
        reason = "makes its own cases; leave out --data" if args.data else "needs records; give their file or folder"
        line.error(f"--data: {args.name} {reason}")
    for name in ("comfyui", "model", "data", "out"):
        setattr(args, name, getattr(args, name) and getattr(args, name).expanduser().resolve())
    return args


def main() -> int:
    """Reads the data, makes the missing records, scores and shows them; returns the exit code, 3 if some failed."""
    args = arguments()
    suite = SUITES[args.name]
    own = {**args.size, **{n: v for n in OWN if (v := getattr(args, n)) is not None}}
    if unknown := own.keys() - {name for settings in suite.settings.values() for name in settings}:
        raise UserError(f"--{min(unknown).replace('_', '-')}: {args.name} has no such setting; leave it out.")
    settings = {task: {name: own.get(name, usual[name]) for name in usual} for task, usual in suite.settings.items()}
    model = checked_model(args.model, args.weight_dtype)
    records = suite.records(args.data)
    with Ticker("hashing the weights"):
        here = identity(args.comfyui, model)
    made_of = {"benchmark": args.name, "seed": args.seed, "settings": settings, "weight_dtype": args.weight_dtype}
    with open_run(args.out, {**made_of, "identity": here}) as folder:
        each = len(suite.settings) if args.name == "shapes" else 1  # --limit counts cases of each task
        driver = Driver(folder, records[: args.limit and args.limit * each], settings, args.seed)
        folder.need_only({record.id for record in records})
        pending = driver.pending(args.retry_failed)
        timing = {}
        if pending:
            cpu = args.cpu or find_device()[0] == "cpu"
            setup = Setup(args.comfyui, model, args.weight_dtype, cpu, here)
            with Ticker("starting ComfyUI"):
                workers = RayActors(setup, args.workers) if args.workers > 1 else InProcess(setup)
            timing = driver.make(pending, workers, args.name)
        results = {record.id: folder.results[record.id] for record in driver.records if record.id in folder.results}
        failed = {name: result["error"] for name, result in results.items() if "error" in result}
        summary = {"records": len(results), "failed": len(failed), **timing, "scores": {}}
        verdicts = {}
        if args.name == "vqa":
            folder.write("predictions.tsv", outcome.predictions(driver.records, results).encode())
            summary["scores"] = outcome.answer_scores(driver.records, results)
        if args.name == "shapes":
            verdicts, summary["scores"] = outcome.shapes_scores(folder.path, driver.records, results)
        folder.write("summary.json", json.dumps(summary, indent=2).encode())
        page = outcome.contact_sheet(json.dumps(folder.made_of), driver.records, results, verdicts)
        folder.write("index.html", page.encode())
    print(f"{len(results) - len(failed)} of {len(results)} records are in {args.out}; open its index.html to view them")
    for name, share in summary["scores"].items():
        print(f"{name:<20}{share['right'] * share['cases']:>5.0f} of {share['cases']} ({share['right'] * 100:.3g}%)")
    for name, error in failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
