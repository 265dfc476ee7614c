"""The packages and the ComfyUI features that the pack needs."""

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
COMFYUI = "0.3.75"  # the oldest ComfyUI that the pack is tested on
# The newest parts of it that the pack needs: module -> names in it.
OFFERED = {
    "comfy_api.latest": ("ComfyExtension", "io", "ui"),
    "comfy.ops": ("cast_bias_weight", "uncast_bias_weight"),
    "comfy.patcher_extension": ("WrapperExecutor", "get_all_wrappers"),
    "comfy.quant_ops": (),
}

# Optional: certificates if Python has none, and the hub's fast client.
OPTIONAL = ("certifi", "hf_xet")


def check_dependencies() -> None:
    """Raises ImportError that says what is missing, and how to install it; imports nothing."""
    missing = [name for module, name in PACKAGES.items() if not _is_there(module)]
    if missing:
        raise ImportError(
            f'Ovis-U1 needs {", ".join(missing)}; install with: "{sys.executable}" -m pip install {" ".join(missing)}'
        )


def check_comfyui() -> None:
    """Raises ImportError that names the ComfyUI that is needed; looks only at what ComfyUI has imported itself."""
    for name, parts in OFFERED.items():
        module = sys.modules.get(name)
        if not _is_there(name) or not all(hasattr(module, part) for part in parts if module is not None):
            raise ImportError(too_old())


def asks_for_nodes() -> bool:
    """Whether this ComfyUI calls `comfy_entrypoint`. One that does not skips the pack and gives no reason."""
    return _is_there("comfy_api.latest")


def too_old() -> str:
    """One sentence that names the ComfyUI that is needed, and this one."""
    version = getattr(sys.modules.get("comfyui_version"), "__version__", "older")
    return f"Ovis-U1 needs ComfyUI {COMFYUI} or newer and this one is {version}; update ComfyUI"


def is_about_comfyui(error: ImportError | AttributeError) -> bool:
    """Whether something of ComfyUI was missing: a module, or a name in one."""
    module = error.name if isinstance(error, ImportError) else getattr(error.obj, "__name__", None)
    return (module or "").split(".")[0] in {name.split(".")[0] for name in OFFERED}


def _is_there(module: str) -> bool:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # its package
        return False
    return spec is not None and spec.origin is not None  # a folder that an uninstallation left holds no module
