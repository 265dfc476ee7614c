"""Trains the small model: `train.py STAGE --folder FOLDER`, with the Python of an environment that has diffusers.

Stages: vae, then latents; vision, then embeddings, language, conditions; decoder, which needs all of these; export,
which writes the checkpoint. The first two lines can run side by side. A stage that was stopped resumes. `COMFYUI_PATH`
names a ComfyUI, for its tokenizer's files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import torch

STAGES = ("vae", "latents", "vision", "embeddings", "language", "conditions", "decoder", "export")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the small model, one stage at a time.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--folder", type=Path, default=Path("small_model_run"), help="folder for the files of the stages"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of this process; two stages with one thread each are fastest"
    )
    parser.add_argument(
        "--worker",
        type=int,
        nargs=2,
        default=(0, 1),
        metavar=("I", "N"),
        help="write part I of N of the data, so that N processes share the work",
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the number of steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.stage == "vae":
        import stage_vae

        stage_vae.train(args.folder, args.scale)
        print(stage_vae.report(args.folder))
    elif args.stage == "vision":
        import stage_vision

        stage_vision.train(args.folder, args.scale)
    elif args.stage in ("embeddings", "language"):
        import stage_language

        if args.stage == "embeddings":
            stage_language.write_embeddings(args.folder, *args.worker)
        else:
            stage_language.train(args.folder, args.scale)
    elif args.stage in ("latents", "conditions", "decoder"):
        import stage_decoder

        if args.stage == "decoder":
            stage_decoder.train(args.folder, args.scale)
        else:
            write = stage_decoder.write_latents if args.stage == "latents" else stage_decoder.write_conditions
            write(args.folder, *args.worker)
    else:
        import export

        export.write(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
