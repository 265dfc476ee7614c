"""Headers of safetensors files, and the positions of their tensors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

ONE_BYTE = ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def header(file: Path) -> tuple[int, dict[str, Any]]:
    """The offset of a file's data, and the entry of each tensor."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(length))
    entries.pop("__metadata__", None)
    return 8 + length, entries


def misplaced(file: Path) -> list[str]:
    """Tensors that do not begin at a multiple of their element's size, and weights that come after metadata."""
    begin, entries = header(file)
    wrong, metadata = [], False
    for name in sorted(entries, key=lambda name: entries[name]["data_offsets"]):
        start, end = entries[name]["data_offsets"]
        elements = math.prod(entries[name]["shape"])
        if (begin + start) % ((end - start) // elements if elements else 1):
            wrong.append(name)
        if metadata and entries[name]["dtype"] not in ONE_BYTE:
            wrong.append(name)
        metadata = metadata or entries[name]["dtype"] == "U8"
    return wrong
