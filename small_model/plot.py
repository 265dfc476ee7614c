"""The stages' losses and shares right as one picture: `plot.py --folder FOLDER`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

# Stages of each panel, with what is shown: these names, or all that have the word in them.
PANELS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "VAE: error of a pixel": {"vae_whole": "error", "vae": "error"},
    "visual tokenizer: shapes right": {"vision": "right"},
    "language model: share right": {"language": "right"},
    "decoder: loss of the velocity": {"decoder": ("text", "edit")},
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw the curves of a training run.")
    parser.add_argument("--folder", type=Path, default=Path("small_model_run"), help="folder of the training run")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).resolve().parent / "curves.png", help="the image to write"
    )
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 3.4), layout="constrained")
    for axis, (title, stages) in zip(axes, PANELS.items(), strict=True):
        begin = 0
        for stage, wanted in stages.items():
            rows = [json.loads(line) for line in (args.folder / f"{stage}.jsonl").read_text("utf-8").splitlines()]
            rows = [row for i, row in enumerate(rows) if all(row["step"] < later["step"] for later in rows[i + 1 :])]
            names = dict.fromkeys(name for row in rows for name in row)
            for name in wanted if isinstance(wanted, tuple) else [name for name in names if wanted in name]:
                points = [(begin + row["step"], row[name]) for row in rows if name in row]
                label = name.replace("error", f"{stage}, crops of ") if wanted == "error" else name
                axis.plot(*zip(*points, strict=True), label=label, linewidth=1)
            begin += rows[-1]["step"]
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_yscale("log")
    axes[3].set_yscale("log")
    figure.savefig(args.out, dpi=90)
    return 0


if __name__ == "__main__":
    sys.exit(main())
