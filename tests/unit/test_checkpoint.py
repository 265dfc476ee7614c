"""Valid forms of a release folder, and the errors for broken ones."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.components import TEXT
from ovis_core.weights.config import ConfigError, check_together, dump_sections, load_sections, read_config
from ovis_core.weights.layout import tensor_shapes
from ovis_core.weights.release_folder import is_complete, is_release
from ovis_core.weights.safetensors_file import CheckpointError, read_entries


@pytest.fixture
def folder(release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(release, tmp_path / "tiny"))


def change(file: Path, edit: Any) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def test_open_release_folder(folder: Path, config: Any) -> None:
    checkpoint = open_model(folder)
    assert checkpoint.config == config
    parts = checkpoint.components.values()
    assert len({file for part in parts for file in part.files.values()}) == 2
    assert sum(len(part.files) for part in parts) == len(dict(tensor_shapes(config)))
    assert checkpoint.tokenizer is None
    assert is_release(folder)
    assert is_complete(folder)


def test_open_single_file(folder: Path) -> None:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    tensors["llm.lm_head.weight"] = tensors["llm.model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    text = open_model(folder).components[TEXT]
    assert text.files["vte.weight"] == folder / "model.safetensors"
    assert "llm.lm_head.weight" not in text.files


def test_error_for_a_missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert is_release(folder)
    assert not is_complete(folder)
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002\.safetensors"):
        open_model(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "is a web page, not a weights file.*download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04" + bytes(300), "is a pickle, which can run code"),
        (b"\x80\x02}q\x00." + bytes(300), "is a pickle, which can run code"),
        (b"GGUF" + bytes(300), "is a GGUF file"),
        (b"", "is empty; delete it and download it again"),
        (b"\xff" * 300, "is damaged or incomplete"),
        (bytes(8), "is damaged or incomplete"),
    ],
    ids=["web page", "LFS pointer", "zip pickle", "pickle", "GGUF", "empty", "huge header", "zeros"],
)
def test_errors_for_files_that_are_not_safetensors(folder: Path, content: bytes, words: str) -> None:
    (folder / "model-00002-of-00002.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model-00002-of-00002\.safetensors {words}"):
        open_model(folder)


def test_error_for_a_folder_of_pickles(folder: Path) -> None:
    for file in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"contains pytorch_model\.bin, but no safetensors files.*download"):
        open_model(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is permitted to root")
def test_error_for_a_file_without_read_permission(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"model-00002.* cannot be read .*permissions"):
        open_model(folder)


def test_error_for_a_folder_in_place_of_a_file(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        open_model(folder)


def test_folder_names_with_spaces_and_unicode(folder: Path) -> None:
    renamed = folder.rename(folder.with_name("Ovis U1 é \u96ea (\u043a\u043e\u043f\u0438\u044f)"))
    assert open_model(renamed).components[TEXT].files


def test_mutated_files(folder: Path, tmp_path: Path) -> None:
    """Every broken header raises only `CheckpointError`."""
    whole = tmp_path / "whole.safetensors"
    save_file({f"layer.{i}.weight": torch.zeros(i + 1, 2) for i in range(8)}, whole)
    data, random = whole.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    file, refused = tmp_path / "mutated.safetensors", []
    for i in range(10_000):
        mutated = bytearray(data)
        for place in random.integers(0, header, random.integers(1, 6)):
            mutated[place] = random.integers(0, 256)
        if i % 3 == 0:
            mutated = mutated[: random.integers(0, len(mutated) + 1)]
        if i % 5 == 0:
            mutated[:8] = int(random.integers(0, 1 << 62)).to_bytes(8, "little")
        file.write_bytes(mutated)
        try:
            read_entries(file)
        except CheckpointError as error:
            refused.append(str(error))
    assert all(message.startswith(str(file)) for message in refused)
    assert 5000 < len(refused) < 10_000


def test_error_for_a_truncated_shard(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is damaged or incomplete"):
        open_model(folder)


@pytest.mark.parametrize("name", ["vte.weight", "llm.model.norm.weight", "visual_generator.vae.quant_conv.bias"])
def test_error_for_a_missing_tensor(folder: Path, name: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    change(folder / index[name], lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"missing tensor {name}"):
        open_model(folder)


def test_error_for_a_tensor_of_the_wrong_shape(folder: Path) -> None:
    name = "visual_generator.backbone.img_in.weight"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]

    def cut(tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name][:, :-1].contiguous()

    change(folder / index[name], cut)
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[96, 15\], but its config.json requires \[96, 16\]"):
        open_model(folder)


def test_error_for_an_index_with_paths_outside_its_folder(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"vte.weight": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_model(folder)


@pytest.mark.parametrize("value", [1, ["a"], None])
def test_error_for_an_index_without_file_names(folder: Path, value: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"vte.weight": value, "b": "c"}}))
    assert not is_complete(folder)
    with pytest.raises(CheckpointError, match="does not name files"):
        open_model(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "", "[]", "{", '{"model_type": "qwen3"}'])
def test_error_for_an_unusable_config_file(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert not is_release(folder)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_model(folder)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("visual_generator_config", "depth"), None, "visual_generator_config.depth is missing"),
        (
            ("visual_tokenizer_config", "tokenize_function"),
            "gumbel_argmax",
            "tokenize_function: expected 'softmax', got 'gumbel_argmax'",
        ),
        (("visual_generator_config", "guidance_embed"), True, "guidance_embed: expected False, got True"),
        (("visual_generator_config", "context_in_dim"), 64, "context_in_dim: expected twice llm_config.hidden_size"),
        (
            ("visual_generator_config", "axes_dim"),
            [4, 8, 10],
            "axes_dim: expected numbers that add up to hidden_size / num_heads",
        ),
        (("visual_generator_config", "axes_dim"), [24], "axes_dim: expected three even numbers, got [24]"),
        (("visual_generator_config", "in_channels"), 64, "in_channels: expected 16, got 64"),
        (("visual_generator_config", "vec_in_dim"), 7, "vec_in_dim: expected 96, got 7"),
        (("visual_tokenizer_config", "backbone_config", "patch_size"), 16, "patch_size: expected 14, got 16"),
        (("visual_generator_config", "vae_config", "latent_channels"), 16, "latent_channels: expected 4, got 16"),
        (("llm_config", "num_key_value_heads"), 3, "expected a multiple of num_key_value_heads (3)"),
        (("llm_config", "vocab_size"), 1000, "vocab_size: expected more than 151668, got 1000"),
        (("visual_generator_config", "vae_config"), None, "visual_generator_config.vae_config is missing"),
        (("llm_config", "num_hidden_layers"), -1, "num_hidden_layers: expected a positive whole number, got -1"),
        (("visual_generator_config", "axes_dim"), 64, "axes_dim: expected a list of positive whole numbers, got 64"),
        (("llm_config", "num_hidden_layers"), 10**9, "num_hidden_layers: expected at most 1024, got 1000000000"),
        (
            ("llm_config", "hidden_size"),
            10**30,
            "hidden_size: expected at most 16777216, got 1000000000000000000000000000000",
        ),
        (
            ("visual_generator_config", "axes_dim"),
            [1] * 10**6,
            "axes_dim: expected a list of positive whole numbers, got [1, 1",
        ),
        (("llm_config", "hidden_act"), "gelu", "hidden_act: expected 'silu', got 'gelu'"),
        (("llm_config", "attention_bias"), True, "llm_config.attention_bias: expected False, got True"),
    ],
)
def test_errors_for_unsupported_config_values(
    raw_config: dict[str, Any], path: tuple[str, ...], value: Any, message: str
) -> None:
    broken = copy.deepcopy(raw_config)
    section = broken
    for key in path[:-1]:
        section = section[key]
    if value is None:
        del section[path[-1]]
    else:
        section[path[-1]] = value
    with pytest.raises(ConfigError) as caught:
        read_config(broken)
    assert message in str(caught.value)


def test_stored_config_round_trip(config: Any) -> None:
    data = dump_sections(decoder=config.decoder, language=config.language)
    assert load_sections(data) == {"decoder": config.decoder, "language": config.language}
    for broken in (b"{", b"[]", b"[" * 100_000, data.replace(b'"depth": 2', b'"depth": "2"'), b'{"vae": {"a": 1}}'):
        with pytest.raises(ConfigError):
            load_sections(broken)


def test_error_for_unsupported_values_in_stored_configs(config: Any) -> None:
    """Parts whose config is in their metadata, which did not go through `read_config`."""
    vision = dataclasses.replace(config.vision, patch_size=16)
    with pytest.raises(ConfigError, match=r"backbone_config\.patch_size: expected 14, got 16"):
        check_together(dataclasses.replace(config, **load_sections(dump_sections(vision=vision))))
