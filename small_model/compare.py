"""What settings cost in pictures: for each the share painted right beside the decoder's passes.

    COMFYUI_PATH=... python small_model/compare.py [--only caches] [--count 40] [--model FILE]

It runs the pack in a real ComfyUI inside this process, on the CPU, with the Python of an environment that ComfyUI runs
in. The cases are those of `cases.py`: combinations and phrasings that training never met.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent

if TYPE_CHECKING:
    import world
    from painting import Painter, Setting


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="a file or folder of weights (default: the built-in model)")
    parser.add_argument("--count", type=int, default=40, help="pictures for each setting")
    parser.add_argument("--only", help="groups, with commas between")
    parser.add_argument("--json", type=Path, help="results also as JSON, one line a row; rows that are there are kept")
    args = parser.parse_args()
    prepare()
    from painting import Painter, cases, settings

    from ovis_core.weights import built_in

    asked = list(cases(args.count))
    done = [json.loads(line) for line in args.json.read_text().splitlines()] if args.json and args.json.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        file = args.model or built_in.unpack(Path(folder))
        painters: dict[str, Painter] = {}
        print("| setting | right | passes a picture | time |\n|---|---|---|---|")
        unit = next((row["seconds"] for row in done if row["group"] == "default"), None)
        for setting in settings():
            if args.only and setting.group not in {"default", *args.only.split(",")}:
                continue
            row = next((row for row in done if (row["group"], row["name"]) == (setting.group, setting.name)), None)
            if row is None:
                painter = painters.setdefault(setting.weight_dtype, Painter(file, setting.weight_dtype))
                row = _measure(painter, setting, asked)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as out:
                        out.write(json.dumps(row) + "\n")
            unit = unit or row["seconds"]
            shown = f"{row['right']:.0%}" if row["right"] is not None else "fails"
            print(f"| {row['name']} | {shown} | {row['passes']:.0f} | {row['seconds'] / unit:.2f} |", flush=True)
    return 0


def prepare() -> None:
    """Makes ComfyUI, on the CPU, and the pack importable."""
    sys.path[:0] = [str(HERE.parent / "scripts"), os.environ["COMFYUI_PATH"]]
    sys.path.append(str(HERE))  # behind everything else: its modules have plain names
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    import torch

    from import_core import import_core

    torch.set_num_threads(1)
    import_core()


def _measure(painter: Painter, setting: Setting, cases: list[tuple[str, world.Scene]]) -> dict[str, Any]:
    begun, before = time.perf_counter(), painter.passes
    from world import look, same

    try:
        hits = [same(look(painter.paint(setting, text, seed)), scene) for seed, (text, scene) in enumerate(cases)]
        right: float | None = sum(hits) / len(hits)
    except Exception as error:
        print(f"{setting.name}: {type(error).__name__}: {error}", file=sys.stderr)
        right = None
    seconds = (time.perf_counter() - begun) / len(cases)
    passes = (painter.passes - before) / len(cases)
    return {"group": setting.group, "name": setting.name, "right": right, "passes": passes, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
