"""What the pack imports and needs to be installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# Module -> what pip calls it. ComfyUI brings them all, and any version that it takes does here.
PACKAGES = {
    "einops": "einops",
    "filelock": "filelock",
    "numpy": "numpy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torch": "torch",
}

# Used where it is there: certificates for Pythons that have none, and the hub's fast client.
OPTIONAL = ("certifi", "hf_xet")


def check_dependencies() -> None:
    """Raises ImportError that says what is missing, and how to install it; imports nothing."""
    missing = [name for module, name in PACKAGES.items() if not _is_there(module)]
    if missing:
        raise ImportError(
            f'Ovis-U1 needs {", ".join(missing)}; install with: "{sys.executable}" -m pip install {" ".join(missing)}'
        )


def _is_there(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.origin is not None  # a folder that an uninstallation left holds no module
