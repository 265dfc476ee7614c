"""Compares sampling settings and weight dtypes: the share of correct images, how clean their shapes are, and the time.

    python small_model/compare.py --comfyui PATH [--only caches] [--count 40] [--model FILE]

It runs the pack in a real ComfyUI inside this process, on the CPU, with the Python of an environment that ComfyUI runs
in. The cases are those of `cases.py`: combinations and phrasings that training does not use.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from comfy_imports import set_up_imports

import workspace
from console import chosen_names, guarded, positive_int
from run_options import add_comfyui_option

if TYPE_CHECKING:
    from cases import Case
    from sampling import Setting, SmallModelPipeline


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_comfyui_option(parser)
    parser.add_argument("--model", type=Path, help="a file or folder of weights (default: the built-in model)")
    parser.add_argument(
        "--count", type=positive_int, default=40, help="images for each setting, at most 10 for a sampler"
    )
    parser.add_argument("--only", help="only these groups of settings, separated by commas")
    parser.add_argument("--json", type=Path, help="also add results to this file; its rows are not measured again")
    args = parser.parse_args()
    set_up_imports(workspace.describe_comfyui(args.comfyui, "").path)
    from cases import first_cases
    from sampling import SmallModelPipeline, settings

    from ovis_core.weights import built_in

    only = chosen_names("--only", args.only, list(dict.fromkeys(setting.group for setting in settings())))
    done = [json.loads(line) for line in args.json.read_text().splitlines()] if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        file = args.model or built_in.unpack(Path(folder))
        pipelines: dict[str, SmallModelPipeline] = {}
        rows = []
        for setting in settings():
            if setting.group not in {"default", *only}:
                continue
            row = next((row for row in done if (row["group"], row["name"]) == (setting.group, setting.name)), None)
            if row is None:
                kind = setting.weight_dtype
                pipelines[kind] = pipelines.get(kind) or SmallModelPipeline(file, kind)
                row = _measure(pipelines[kind], setting, first_cases(setting.task, args.count)[: setting.max_cases])
                if args.json:
                    with args.json.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(row) + "\n")
            rows.append(row)
            print(f"{row['name']}: {_share(row)}, {row['passes']:.0f} passes", file=sys.stderr, flush=True)
    print(table(rows))
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each setting, then a row for each sampler with a column for each scheduler."""
    unit = rows[0]["seconds"]
    lines = ["| setting | right | fit | passes an image | time |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['name']} | {_share(row)} | {row['fit']:.3f} | {row['passes']:.0f} | {row['seconds'] / unit:.2f} |"
        for row in rows
        if row["group"] != "samplers"
    ]
    samplers: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["group"] == "samplers":
            sampler, scheduler = row["name"].split(", ")
            samplers.setdefault(sampler, {})[scheduler] = row
    if samplers:
        schedulers = list(next(iter(samplers.values())))
        lines += ["", f"| sampler | {' | '.join(schedulers)} | passes an image |", "|---" * (len(schedulers) + 2) + "|"]
    for sampler, found in samplers.items():
        shares = " | ".join(f"{_share(row)}, {row['fit']:.3f}" for row in found.values())
        lines.append(f"| {sampler} | {shares} | {max(row['passes'] for row in found.values()):.0f} |")
    return "\n".join(lines)


def _share(row: dict[str, Any]) -> str:
    return "fails" if row["right"] is None else f"{row['right']:.0%}"


def _measure(pipeline: SmallModelPipeline, setting: Setting, asked: list[Case]) -> dict[str, Any]:
    import flat_shapes
    from cases import picture_verdict

    begun = time.process_time()
    before = pipeline.passes
    hits, fits = [], []
    try:
        for seed, case in enumerate(asked):
            picture = pipeline.make_image(setting, case, seed)
            hits.append(picture_verdict(case, picture)[0])
            fits.append(max((shape.fit for shape in flat_shapes.recognise(picture).shapes), default=0.0))
        right: float | None = sum(hits) / len(hits)
    except Exception as error:
        print(f"{setting.name}: {type(error).__name__}: {error}", file=sys.stderr)
        right = None
    return {
        "group": setting.group,
        "name": setting.name,
        "right": right,
        "fit": sum(fits) / max(len(fits), 1),
        "passes": (pipeline.passes - before) / len(asked),
        "seconds": (time.process_time() - begun) / len(asked),
    }


if __name__ == "__main__":
    sys.exit(guarded(main))
