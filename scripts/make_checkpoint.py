"""Small random checkpoints in the release's layout. Every tensor is computed from its name and shape.

`tests/golden` has the authors' results for the checkpoint of `tests/golden/config.json`. Run as a script:

    python scripts/make_checkpoint.py tests/golden/config.json FOLDER
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from console import lacks, positive_int
from import_core import import_core

try:
    import numpy as np
    from safetensors.numpy import save_file
except ModuleNotFoundError as error:
    sys.exit(lacks(error))

GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def tensor(name: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """The float32 tensor of that name: FNV-1a of the name seeds a SplitMix64 stream (tests/golden/README.md)."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 % 2**64
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    z *= GOLDEN_RATIO
    z += np.uint64((h + salt) % 2**64)
    for shift, factor in MIX:
        z ^= z >> np.uint64(shift)
        z *= np.uint64(factor)
    z ^= z >> np.uint64(31)
    s = 2.0 * ((z >> np.uint64(40)).astype(np.float64) / 2**24) - 1.0
    if name.endswith(("pos_embed", "cls_token")):
        values = 0.5 * s
    elif len(shape) == 1:
        values = 0.1 * s if name.endswith(".bias") else 1.0 + 0.1 * s
    else:
        values = s * np.sqrt(3.0 / np.prod(shape[1:]))
    return values.astype(np.float32).reshape(shape)


def write_release(folder: Path, config: Mapping, seed_salt: int = 0, dtype: str = "F32", shards: int = 2) -> Path:
    """Writes config.json, sharded weights and their index to `folder`; the index comes last.

    dtype: F32 or BF16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    core = import_core()
    named = list(core.weights.layout.tensor_shapes(core.weights.config.read_config(config)))
    index: dict[str, str] = {}
    size = -(-len(named) // shards)
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensor(name, shape, seed_salt) for name, shape in named[i * size : (i + 1) * size]}
        if dtype == "BF16":
            _save_bf16(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read.
        (folder / file).chmod(0o644)
        index |= dict.fromkeys(part, file)
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    text = json.dumps({"metadata": {}, "weight_map": index}, indent=1)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return folder


def _save_bf16(part: dict[str, np.ndarray], path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    save_torch({k: torch.from_numpy(v).bfloat16() for k, v in part.items()}, path, metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write a random checkpoint in the release's layout.")
    parser.add_argument("config", type=Path, help="a config.json")
    parser.add_argument("folder", type=Path, help="where to write, e.g. ComfyUI/models/ovis_u1/tiny-random")
    parser.add_argument("--dtype", choices=("F32", "BF16"), default="F32", help="type of the weights (default: F32)")
    parser.add_argument("--shards", type=positive_int, default=2, help="number of files for the weights (default: 2)")
    args = parser.parse_args(argv)
    if not args.config.is_file():
        parser.error(f"config: {args.config} does not exist; run this in the pack's folder, or choose another file")
    config = json.loads(args.config.read_text(encoding="utf-8"))
    try:
        folder = write_release(args.folder, config, dtype=args.dtype, shards=args.shards)
    except import_core().weights.config.ConfigError as error:
        parser.error(f"config: {error}; choose a config.json of Ovis-U1")
    print(f"{folder.resolve()} is written; press R in ComfyUI and choose it in Ovis-U1 Load Model.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
