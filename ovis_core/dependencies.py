"""What the pack imports and needs to be installed."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

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
    spec = find_spec(module)
    if spec is None or spec.origin is None:  # a folder that an uninstallation left holds no module
        return False
    _, _, floor = wanted.partition(">=")
    found = _version(spec.origin) if floor else ""
    # What can be imported counts, also where it does not say which version it is.
    return not found or _numbers(found) >= _numbers(floor)


def _version(origin: str) -> str:
    """What a module's own file says; the metadata beside it may be another version's, left by a broken upgrade."""
    try:
        text = Path(origin).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
    found = re.search(r"""(?m)^__version__ = ["'](.+)["']""", text)
    return found[1] if found else ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def _quoted(wanted: str) -> str:
    # A bare > would send pip's output to a file.
    return f'"{wanted}"' if ">" in wanted else wanted
