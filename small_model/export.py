"""The trained stages -> one checkpoint as `scripts/convert.py` writes it, compressed for the repository."""

from __future__ import annotations

import json
import lzma
from dataclasses import asdict
from pathlib import Path

import stage_decoder
import stage_language
import stage_vae
import torch
from networks import VOCABULARY, configuration, core, used_tokens
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

NAME = "ovis-u1-shapes.safetensors"
TARGET = Path(__file__).resolve().parent / f"{NAME}.xz"


def write(folder: Path, target: Path = TARGET) -> Path:
    """Writes the release's layout to `folder / "release"`, converts it to one file, and compresses that.

    scores.json in `folder`, if it is there, goes into the file's metadata.
    """
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.conversion import write_one
    from ovis_core.weights.precision import PRECISIONS

    release, one = folder / "release", folder / NAME
    release.mkdir(exist_ok=True)
    tensors = all_tensors(folder)
    config = json.loads(json.dumps(release_config()))  # as a file has it
    wanted = dict(core.weights.layout.tensor_shapes(core.weights.config.read_config(config)))
    wrong = [name for name, shape in wanted.items() if tuple(tensors[name].shape) != tuple(shape)]
    assert not wrong, wrong
    save_file(
        {name: tensors[name].bfloat16().contiguous() for name in wanted},
        release / "model.safetensors",
        {"format": "pt"},
    )
    (release / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    index = {"metadata": {}, "weight_map": dict.fromkeys(wanted, "model.safetensors")}
    (release / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    one.unlink(missing_ok=True)
    write_one(open_model(release), one, PRECISIONS["default"])
    scores = folder / "scores.json"
    _add_metadata(
        one, {"config": json.dumps(config), "scores": scores.read_text("utf-8") if scores.is_file() else "{}"}
    )
    target.write_bytes(lzma.compress(one.read_bytes(), preset=9))
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, unpacked {one.stat().st_size / 1e6:.1f} MB")
    return target


def all_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor under its name in the release, the embedding spread over the whole vocabulary."""
    tensors = dict(stage_language.load(folder).state_dict())
    name = "llm.model.embed_tokens.weight"
    table = torch.zeros(VOCABULARY, tensors[name].shape[1])
    table[list(used_tokens())] = tensors[name]
    tensors[name] = table
    for key, value in stage_decoder.load(folder).state_dict().items():
        tensors["visual_generator.backbone." + key.replace("_norm.weight", "_norm.scale")] = value
    tensors |= {f"visual_generator.vae.{key}": value for key, value in stage_vae.load(folder).state_dict().items()}
    return tensors


def release_config() -> dict:
    """config.json."""
    parts = configuration(VOCABULARY)
    vision = asdict(parts.vision)
    words = vision.pop("vocab_size")
    return {
        "model_type": "ovis_u1",
        "llm_config": {"model_type": "qwen3", **asdict(parts.language)},
        "visual_tokenizer_config": {"vocab_size": words, "tokenize_function": "softmax", "backbone_config": vision},
        "visual_generator_config": {"txt_type": "refiner", **asdict(parts.decoder), "vae_config": asdict(parts.vae)},
    }


def _add_metadata(file: Path, entries: dict[str, str]) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = {**metadata, **entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
