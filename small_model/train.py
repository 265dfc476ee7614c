"""Trains the small model: `train.py STAGE --folder FOLDER`, with the Python of an environment that has diffusers.

Stages: vae and language, which do not need each other and can run side by side; decoder, after both; export, which
writes the checkpoint. Each resumes where it was stopped. `COMFYUI_PATH` names a ComfyUI, for its tokenizer's files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch

STAGES = ("vae", "language", "decoder", "export")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the small model, one stage at a time.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, default=Path("small_model_run"), help="where the stages keep their files")
    parser.add_argument("--threads", type=int, default=1, help="of this process; one each for two stages is fastest")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.stage == "vae":
        import stage_vae

        stage_vae.train(args.folder, args.scale)
        print(stage_vae.report(args.folder))
    elif args.stage == "language":
        import stage_language

        stage_language.train(args.folder, args.scale)
    elif args.stage == "decoder":
        import stage_decoder

        stage_decoder.train(args.folder, args.scale)
    else:
        import export

        export.write(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
