"""Metadata of a model, stored as tensors with its weights: the config, and the tokenizer's files.

Core's save nodes write only tensors, so a pack cannot add metadata in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import dump_sections, load_sections
from .release import TOKENIZER_FILES
from .safetensors_file import METADATA, TensorEntry

CONFIG = f"{METADATA}config.json"


def metadata(tokenizer: Path | Mapping[str, bytes] | None = None, **sections: Any) -> dict[str, Tensor]:
    """Name without prefix -> bytes as a uint8 tensor.

    tokenizer  the files by name, or their folder
    sections   of the config, as for `dump_sections`
    """
    if isinstance(tokenizer, Path):
        folder = tokenizer
        tokenizer = _first_set(lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None)
    files = {f"{METADATA}{name}": data for name, data in (tokenizer or {}).items()}
    files = {CONFIG: dump_sections(**sections), **files}
    return {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()}


def read_metadata(entries: Mapping[str, TensorEntry]) -> tuple[dict[str, Any], dict[str, bytes] | None]:
    """A component's sections of the config, and the tokenizer's files if it has them, by its tensors without prefix.

    Raises `ConfigError`.
    """
    data = {name: entry.data for name, entry in entries.items() if name.startswith(METADATA)}
    sections = load_sections(data[CONFIG]) if data.get(CONFIG) is not None else {}
    return sections, _first_set(lambda name: data.get(f"{METADATA}{name}"))


def _first_set(read: Callable[[str], bytes | None]) -> dict[str, bytes] | None:
    """The first complete set of a tokenizer's files; `read` returns None for a missing file."""
    for names in TOKENIZER_FILES:
        files = {name: read(name) for name in names}
        if None not in files.values():
            return files
    return None
