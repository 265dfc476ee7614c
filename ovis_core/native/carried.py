"""What ComfyUI saves with the weights besides them: the config, and the tokenizer's own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import CARRIED, CONFIG
from ..config import dump_sections
from ..tokenizer import FILES


def carried(tokenizer: Path | Mapping[str, bytes] | None = None, **sections: Any) -> dict[str, Tensor]:
    """Bytes as uint8 tensors, because core's nodes that save weights leave no place for metadata of ours.

    sections  the config's, as `dump_sections` takes them
    """
    files = {CONFIG: dump_sections(**sections)}
    if isinstance(tokenizer, Mapping):
        files |= tokenizer
    elif tokenizer is not None:
        files |= {name: (tokenizer / name).read_bytes() for name in FILES if (tokenizer / name).is_file()}
    return {f"{CARRIED}{name}": torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in files.items()}
