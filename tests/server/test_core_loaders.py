"""Graphs with ComfyUI's own loaders, in a running ComfyUI."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_prompt import PromptFailed
from comfy_server import ComfyServer
from helpers.graphs import Graph, load, saved_latent, text_to_image
from helpers.pictures import picture
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.conversion import write_one, write_parts
from ovis_core.weights.precision import DEFAULT

WHOLE, SHARD = "core_loaders.safetensors", "one_of_two.safetensors"
FOLDERS = ("diffusion_models", "text_encoders", "vae")


@pytest.fixture(scope="module", autouse=True)
def files(server: ComfyServer, release: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The small model as one file and in parts, and a file of its release, in ComfyUI's folders."""
    models = server.base / "models"
    for folder in (*FOLDERS, "checkpoints"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    write_one(open_model(release), models / "checkpoints" / WHOLE, DEFAULT)
    written = write_parts(open_model(release), tmp_path_factory.mktemp("parts"), DEFAULT)
    for folder, file in zip(FOLDERS, written, strict=True):
        file.rename(models / folder / WHOLE)
    (shard, _) = sorted(release.glob("model-*.safetensors"))
    shutil.copy(shard, models / "checkpoints" / SHARD)


@pytest.fixture(scope="module")
def source(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("source") / "loaders.png"
    picture(128, 96).save(file)
    return server.upload(file)


def graphs(info: dict[str, Any], source: str) -> dict[str, Graph]:
    """Text to image, an edit and a question, each with our loader."""
    edit = load("edit", info).set("LoadImage", image=source).set_all("OvisU1Sampler", steps=2, seed=7)
    question = load("understand", info).set("LoadImage", image=source).set("OvisU1Understand", max_new_tokens=8)
    return {"drawn": text_to_image(info, steps=2), "edited": edit, "answer": question}


def outcome(server: ComfyServer, graph: Graph) -> Any:
    """The last latent of a graph, or its text."""
    if graph.find_all("OvisU1Understand"):
        result = server.run(graph.prompt)
        return result.outputs[graph.find("OvisU1Understand")]["text"][0]
    saved = graph.save_latent([graph.find_all("OvisU1Sampler")[-1], 0], "core_loaders")
    return saved_latent(server, server.run(graph.prompt), saved)


def from_checkpoint(graph: Graph) -> Graph:
    """With Load Checkpoint instead of our loader, whose outputs are in the same order."""
    node = graph.prompt[graph.find("OvisU1Loader")]
    node |= {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": WHOLE}}
    return graph


def from_parts(graph: Graph) -> Graph:
    """With Load Diffusion Model and Load CLIP; the VAE is our loader's, because Load VAE takes the published size."""
    own = graph.find("OvisU1Loader")
    graph.set("OvisU1Loader", model_name=f"checkpoints/{WHOLE}")
    links = {
        0: graph.add("UNETLoader", unet_name=WHOLE, weight_dtype="default"),
        1: graph.add("CLIPLoader", clip_name=WHOLE, type="stable_diffusion"),
    }
    for node in graph.prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == own and value[1] in links:
                node["inputs"][name] = [links[value[1]], 0]
    return graph


@pytest.mark.parametrize("name", ["drawn", "edited", "answer"])
def test_the_results_are_those_of_our_loaders(
    server: ComfyServer, info: dict[str, Any], source: str, name: str
) -> None:
    graph = graphs(info, source)[name]
    ours = outcome(server, graph.copy().set("OvisU1Loader", model_name=f"checkpoints/{WHOLE}"))
    core = outcome(server, from_checkpoint(graph.copy()))
    parts = graph.copy()
    names = ("diffusion_model_name", "text_encoder_name", "vae_name")
    parts.prompt[parts.find("OvisU1Loader")] = {
        "class_type": "OvisU1LoadParts",
        "inputs": {**dict.fromkeys(names, WHOLE), "weight_dtype": "default"},
    }
    ours_in_parts, core_in_parts = outcome(server, parts), outcome(server, from_parts(graph.copy()))
    for own, other in ((ours, core), (ours_in_parts, core_in_parts)):
        assert own == other if name == "answer" else torch.equal(own, other)


def test_their_errors_are_sentences(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = from_checkpoint(text_to_image(info)).set("CheckpointLoaderSimple", ckpt_name=SHARD)
    with pytest.raises(PromptFailed, match=r"one of the files of the Ovis-U1 release.*folder in Ovis-U1") as caught:
        server.run(graph.prompt)
    assert "\n" not in str(caught.value).strip()
    graph = from_parts(text_to_image(info)).set("UNETLoader", weight_dtype="fp8_e5m2")
    with pytest.raises(PromptFailed, match=r"weight_dtype: expected default, .*, got float8_e5m2; choose one of these"):
        server.run(graph.prompt)
