"""Sets up ComfyUI and runs three workflows in it, from a bare checkout: text to image, edit and ask.

    python scripts/demo.py                        the small model that comes with the pack
    python scripts/demo.py --model PATH --serve   real weights, and ComfyUI's page to continue with

Standard library only; demo_run.py runs in the environment that this script creates.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import workspace
from console import UserError, guarded


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=(
            "Make an image, edit it and ask about it with Ovis-U1's workflows in ComfyUI, which is set up first if "
            "necessary."
        )
    )
    parser.add_argument(
        "--comfyui",
        metavar="PATH",
        help="the ComfyUI to run (nothing is written to it), or 'registry' for the pinned copy",
    )
    parser.add_argument("--model", type=Path, metavar="PATH", help="a downloaded release, e.g. Ovis-U1-3B")
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running until Ctrl+C")
    parser.add_argument("--port", type=int, help="ComfyUI's port (default with --serve: 8188, or the next free one)")
    parser.add_argument("--prompt", help="the image to make")
    parser.add_argument("--edit", metavar="INSTRUCTION", help="what to change in that image")
    parser.add_argument("--question", help="what to ask about the edited image")
    parser.add_argument("--seed", type=int, help="sampling seed")
    args = parser.parse_args()

    workspace.check_python()
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f"--port: expected a number from 1 to 65535, got {args.port}; choose another port")
    for name in ("prompt", "edit", "question"):
        if getattr(args, name) is not None and not getattr(args, name).strip():
            parser.error(f"--{name}: expected text, got none; enter text, or leave out --{name}")
    if args.model is not None:
        check_release(args.model)
    comfyui = workspace.find_comfyui(args.comfyui, registry_only=False)
    python = workspace.prepare_env(comfyui.path)
    command = [str(workspace.ROOT / "scripts" / "demo_run.py")]
    command += ["--comfyui", str(comfyui.path), "--where", comfyui.where]
    for name in ("model", "port", "prompt", "edit", "question", "seed"):
        value = getattr(args, name)
        if value is not None:
            # One argument, so that a prompt that begins with "-" is not parsed as an option.
            command.append(f"--{name}={value.expanduser().resolve() if name == 'model' else value}")
    if args.serve:
        command.append("--serve")
    return workspace.hand_over(python, command)


def check_release(folder: Path) -> None:
    """Raises UserError if the folder is not a release."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UserError(f"--model: {folder} does not exist; choose the folder of a downloaded release.")
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise UserError(
                f"--model: {folder} has no {pattern}, so it is not a release of Ovis-U1; choose the folder of a "
                "downloaded release."
            )


if __name__ == "__main__":
    sys.exit(guarded(main))
