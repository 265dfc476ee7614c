"""Models that cannot be used, in a running ComfyUI: one sentence names the file and the remedy, and the server keeps
running.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import make_checkpoint
from comfy_prompt import PromptFailed, PromptRejected
from comfy_server import ComfyServer
from helpers.graphs import text_to_image

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX, CONFIG = "model.safetensors.index.json", "config.json"


def edit_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


def edit_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def cut(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)


def another_release(folder: Path) -> None:
    """A shard of a wider model."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["llm_config"]["intermediate_size"] *= 2
    other = make_checkpoint.write_release(folder.parent.parent / "other_release", config)
    shutil.copy(other / FIRST, folder / FIRST)


def pickles(folder: Path) -> None:
    for file in (FIRST, SECOND, INDEX):
        (folder / file).unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a missing shard": (lambda f: (f / SECOND).unlink(), rf"lacks {SECOND}: the download is incomplete"),
    "half a shard": (lambda f: cut(f / SECOND), rf"{SECOND} is damaged or incomplete .*download it again"),
    "no index": (lambda f: (f / INDEX).unlink(), rf"the shards of a model, but no {INDEX}; copy the release's {INDEX}"),
    "an index of a missing file": (
        lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update(more="model-00003-of-00003.safetensors")),
        r"lacks model-00003-of-00003\.safetensors",
    ),
    "an index with a path outside its folder": (
        lambda f: edit_json(f / INDEX, lambda v: v["weight_map"].update(more="../tiny/model.safetensors")),
        r"index\.json names files outside its folder",
    ),
    "another release's shard": (
        another_release,
        r"has shape .*, but its config.json requires .*; download the weights and",
    ),
    "a web page": (lambda f: (f / FIRST).write_bytes(b"<!doctype html><p>404"), rf"{FIRST} is a web page, not a weigh"),
    "an LFS pointer": (
        lambda f: (f / FIRST).write_bytes(b"version https://git-lfs.github.com/spec/v1"),
        "git lfs pull",
    ),
    "pickles": (pickles, r"contains pytorch_model\.bin, but no safetensors files.*download the release's safetensors"),
    "no config": (lambda f: (f / CONFIG).unlink(), r"cannot be used: .* has no config\.json; copy the release's"),
    "a config that is not JSON": (
        lambda f: (f / CONFIG).write_text("{"),
        r"cannot be used: .*config\.json is not JSON",
    ),
    "another model's config": (
        lambda f: edit_json(f / CONFIG, lambda v: v.update(model_type="ovis")),
        r"cannot be used: .*config\.json: model_type: expected 'ovis_u1', got 'ovis'",
    ),
    "absurd sizes": (
        lambda f: edit_json(f / CONFIG, lambda v: v["llm_config"].update(hidden_size=10**12)),
        r"llm_config\.hidden_size: expected at most \d+, got 1000000000000;",
    ),
    "large sizes": (
        lambda f: edit_json(f / CONFIG, lambda v: v["llm_config"].update(intermediate_size=10**7)),
        r"has shape \[\d+, \d+\], but its config\.json requires \[10000000, \d+\]",
    ),
    "a missing tensor": (
        lambda f: (
            edit_tensors(f / FIRST, lambda v: v.pop("llm.model.norm.weight")),
            edit_json(f / INDEX, lambda v: v["weight_map"].pop("llm.model.norm.weight")),
        ),
        r"missing tensor llm\.model\.norm\.weight",
    ),
    "a deleted folder": (shutil.rmtree, r"was not found; choose"),
}


@pytest.fixture
def broken(server: ComfyServer, release: Path) -> Iterator[Path]:
    """A separate model in the server's folder."""
    folder = Path(shutil.copytree(release, server.base / "models" / "ovis_u1" / "broken é \u96ea"))
    server.object_info()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_for_broken_models_are_one_sentence(
    server: ComfyServer, info: dict[str, Any], broken: Path, fault: str
) -> None:
    damage, words = FAULTS[fault]
    damage(broken)
    with pytest.raises((PromptFailed, PromptRejected), match=words) as caught:
        server.run(text_to_image(info, 64, 64, steps=1).set("OvisU1Loader", model_name=broken.name).prompt)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    assert "Traceback" not in message
    assert server.run(text_to_image(info, 64, 64, steps=1).prompt).outputs


def test_error_for_a_file_deleted_after_listing(server: ComfyServer, info: dict[str, Any], broken: Path) -> None:
    graph = text_to_image(info, 64, 64, steps=1).set("OvisU1Loader", model_name=broken.name)
    server.run(graph.prompt)
    (broken / FIRST).unlink()
    with pytest.raises(PromptFailed, match=rf"lacks {FIRST}"):
        server.run(graph.prompt)


def test_error_for_a_model_name_outside_the_folder(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, 64, 64, steps=1).set("OvisU1Loader", model_name="../ovis_u1/tiny")
    with pytest.raises(PromptRejected, match=r"'\.\./ovis_u1/tiny' was not found; choose"):
        server.run(graph.prompt)


def test_nested_folder_with_a_unicode_name_loads(server: ComfyServer, info: dict[str, Any], broken: Path) -> None:
    inner = broken / broken.name
    inner.mkdir()
    for file in [*broken.iterdir()]:
        if file != inner:
            file.rename(inner / file.name)
    graph = text_to_image(info, 64, 64, steps=1).set("OvisU1Loader", model_name=f"{broken.name}/{inner.name}")
    assert server.run(graph.prompt).outputs
