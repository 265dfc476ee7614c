"""Runs the tests from a bare checkout: sets up ComfyUI and an environment, then starts pytest in it.

    python scripts/test.py [--comfyui PATH] [-- pytest's own arguments]

Without arguments for pytest all tests run, in two processes. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys

import workspace
from console import guarded

# tests/conftest.py says which tests stay in one process. Files are not sorted by their number of tests, which would
# leave the slowest for the end.
EVERYTHING = ["-n", "2", "--no-loadscope-reorder", "-v"]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Run the tests with the pinned copy of ComfyUI; arguments after -- go to pytest."
    )
    parser.add_argument(
        "--comfyui",
        metavar="PATH",
        help="test with this ComfyUI (nothing is written to it), or 'registry' for the pinned copy",
    )
    ours, theirs = _split(sys.argv[1:])
    args = parser.parse_args(ours)

    workspace.check_python()
    comfyui = workspace.find_comfyui(args.comfyui, registry_only=True)
    python = workspace.prepare_env(comfyui.path, tests=True)
    print(f"ComfyUI {comfyui.version}: {comfyui.where}")
    os.chdir(workspace.ROOT)
    environment = {"COMFYUI_PATH": str(comfyui.path)}
    if not theirs:
        theirs = EVERYTHING
        environment["OMP_NUM_THREADS"] = "1"  # more threads than cores would wait for each other
    # Isolated, because the checkout's root on sys.path would hide ComfyUI's modules of the same names.
    return workspace.hand_over(python, ["-I", "-m", "pytest", *theirs], environment)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


if __name__ == "__main__":
    sys.exit(guarded(main))
