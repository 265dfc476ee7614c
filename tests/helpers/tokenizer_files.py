"""Tokenizer files like the release's."""

from __future__ import annotations

import json
from pathlib import Path

QWEN3_RENAMED = {151665: "<tool_response>", 151666: "</tool_response>", 151667: "<think>", 151668: "</think>"}


def write_tokenizer(folder: Path, qwen25: Path) -> None:
    """Writes Qwen2.5's vocabulary with Qwen3's names of control tokens."""
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_bytes((qwen25 / name).read_bytes())
    config = json.loads((qwen25 / "tokenizer_config.json").read_text(encoding="utf-8"))
    for i, name in QWEN3_RENAMED.items():
        config["added_tokens_decoder"][str(i)] |= {"content": name, "special": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    added = {entry["content"]: int(i) for i, entry in config["added_tokens_decoder"].items()}
    (folder / "added_tokens.json").write_text(json.dumps(added), encoding="utf-8")
