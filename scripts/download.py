"""Downloads the release, or its missing or damaged files; checks every file that exists.

    python scripts/download.py [FOLDER] [--repository NAME] [--revision NAME]

Run it with ComfyUI's Python. FOLDER is optional if the pack is in ComfyUI/custom_nodes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from console import bar, guarded, show
from import_core import import_core

FOLDER = Path("models") / "ovis_u1" / "Ovis-U1-3B"


def main() -> int:
    """Command line."""
    import_core()
    from ovis_core.weights.download import REPOSITORY, DownloadError, Progress, download
    from ovis_core.weights.safetensors_file import CheckpointError

    # Not resolved, because the pack can be linked into custom_nodes.
    pack = Path(os.path.abspath(__file__)).parent.parent  # noqa: PTH100 (resolve would follow the link)
    own = pack.parent.parent / FOLDER if pack.parent.name == "custom_nodes" else None
    parser = argparse.ArgumentParser(description="Download the release of Ovis-U1, or its missing files.")
    default = f" (default: {own})" if own else f", such as {FOLDER} of a ComfyUI"
    parser.add_argument("folder", type=Path, nargs="?" if own else None, default=own, help=f"where to put it{default}")
    parser.add_argument("--repository", default=REPOSITORY, help=f"owner/name on the hub (default: {REPOSITORY})")
    parser.add_argument("--revision", default="main", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--check-values", action="store_true", help="also read every weight, and fail if one is NaN or infinite"
    )
    args = parser.parse_args()

    def report(progress: Progress) -> None:
        sizes = f"{progress.done / 1e9:.2f} of {progress.total / 1e9:.2f} GB"
        show(f"{bar(progress.done, max(progress.total, 1))}  {sizes}, {progress.doing}")

    try:
        folder = download(args.repository, args.folder.absolute(), args.revision, report, recheck=True)
        if args.check_values:
            check(folder)
    except (DownloadError, CheckpointError) as error:
        show("", last=True)
        print(error, file=sys.stderr)
        return 1
    show(f"{folder} is complete.", last=True)
    return 0


def check(folder: Path) -> None:
    """Raises CheckpointError if the model in the folder cannot be used, or if a weight of it is NaN or infinite."""
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.component_checks import check_values

    show("checking the weights' values")
    for component in open_model(folder).components.values():
        check_values(component.entries.values())


if __name__ == "__main__":
    sys.exit(guarded(main))
