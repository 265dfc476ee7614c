"""Fetches the release into a ComfyUI, with the Python that has huggingface_hub.

python scripts/download.py ComfyUI/models/ovis_u1/Ovis-U1-3B [--repository NAME] [--revision NAME]
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from import_core import import_core
from workspace import bar, guarded, show

import_core()
core = importlib.import_module("ovis_core.download")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Fetch the release of Ovis-U1, or what is missing of it.")
    parser.add_argument("folder", type=Path, help="where to put it, e.g. ComfyUI/models/ovis_u1/Ovis-U1-3B")
    parser.add_argument("--repository", default=core.REPOSITORY)
    parser.add_argument("--revision", default="main")
    args = parser.parse_args()

    def report(progress: core.Progress) -> None:
        sizes = f"{progress.done / 1e9:.2f} of {progress.total / 1e9:.2f} GB"
        show(f"{bar(progress.done, max(progress.total, 1))}  {sizes}, {progress.doing}")

    try:
        folder = core.download(args.repository, args.folder, args.revision, report)
    except core.DownloadError as error:
        show("", last=True)
        print(error, file=sys.stderr)
        return 1
    show(f"{folder} is complete.", last=True)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
