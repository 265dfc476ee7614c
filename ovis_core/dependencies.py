"""What the pack imports and needs to be installed."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Module -> what pip calls it. ComfyUI brings them all, but not always a transformers that is new enough.
PACKAGES = {
    "einops": "einops",
    "filelock": "filelock",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torch": "torch",
    "transformers": "transformers>=4.51.0",
}


def check_dependencies() -> None:
    """Raises ImportError that says what is missing or too old, and how to install it; imports nothing."""
    missing = [wanted for module, wanted in PACKAGES.items() if not _is_there(module, wanted)]
    if missing:
        raise ImportError(
            f"Ovis-U1 needs {', '.join(missing)}; install with: "
            f'"{sys.executable}" -m pip install {" ".join(map(_quoted, missing))}'
        )


def _is_there(module: str, wanted: str) -> bool:
    if find_spec(module) is None:
        return False
    name, _, floor = wanted.partition(">=")
    try:
        found = version(name) if floor else ""
    except PackageNotFoundError:
        found = ""
    # What can be imported counts, also where leftovers of another version hide which one it is.
    return not found or _numbers(found) >= _numbers(floor)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _quoted(wanted: str) -> str:
    # A bare > would send pip's output to a file.
    return f'"{wanted}"' if ">" in wanted else wanted
