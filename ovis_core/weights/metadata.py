"""Metadata stored as tensors with the weights: the config, and the tokenizer's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CARRIED, CONFIG, tokenizer_files
from .config import dump_sections


def carried(tokenizer: Path | Mapping[str, bytes] | None = None, **sections: Any) -> dict[str, Tensor]:
    """Bytes as uint8 tensors, because core's nodes that save weights leave no place for metadata of ours.

    sections  the config's, as `dump_sections` takes them
    """
    files = {CONFIG: dump_sections(**sections)}
    if isinstance(tokenizer, Path):
        folder = tokenizer
        tokenizer = tokenizer_files(lambda name: (folder / name).read_bytes() if (folder / name).is_file() else None)
    files |= tokenizer or {}
    return {f"{CARRIED}{name}": torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()}
