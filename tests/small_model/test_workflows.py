"""Workflows with the small model that comes with the pack: captions and images are right, not only there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import flat_shapes
import numpy as np
import phrasings
import pytest
import torch
from PIL import Image

import workspace
from comfy_prompt import Result
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS
from helpers.graphs import Graph, load, saved_image, saved_images
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in
from workflow_api import read_workflow

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

PICTURES, PAIRS = "ovis_u1_pictures", "ovis_u1_lora"  # the folders that the workflows name
SCENES = [flat_shapes.make_scene(Random(seed), False, 1 + seed % 2) for seed in range(5)]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with the small model, and a folder of pictures among its inputs."""
    base = workspace.make_base(tmp_path_factory.mktemp("workflows"), ROOT, comfyui_path())
    folder = base / "input" / PICTURES
    folder.mkdir(parents=True)
    for number, picture in enumerate(flat_shapes.draw(SCENES)):
        # Names whose order is not the order in which they were written, and two kinds of files.
        file = folder / f"{'dbeac'[number]}.{('png', 'webp')[number % 2]}"
        flat_shapes.to_image(picture).save(file, lossless=True)
    with ComfyServer(comfyui_path(), base, DEVICE_ARGS) as running:
        yield running


def workflow(server: ComfyServer, name: str) -> Graph:
    """One of the pack's workflows with the small model."""
    return load(name, server.object_info()).set("OvisU1Loader", model_name=built_in.NAME)


def scene_of(image: Image.Image) -> flat_shapes.Scene:
    pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return flat_shapes.recognise(pixels.permute(2, 0, 1) / 255)


def pairs_in(folder: Path) -> list[tuple[Image.Image, str]]:
    """Pictures and the texts beside them."""
    files = sorted(folder.glob("*.png"))
    assert sorted(folder.iterdir()) == sorted(files + [file.with_suffix(".txt") for file in files])
    return [(Image.open(file), file.with_suffix(".txt").read_text(encoding="utf-8")) for file in files]


def caption(server: ComfyServer, trigger: str) -> tuple[Result, Graph, list[tuple[Image.Image, str]]]:
    """The result of captioning the folder of pictures, and the pairs that it saved."""
    graph = workflow(server, "caption_folder").set("StringConcatenate", string_a=trigger)
    result = server.run(graph.prompt)
    return result, graph, pairs_in(server.base / "output" / PAIRS)


@pytest.mark.parametrize("trigger", ["", "ohwx, "])
def test_each_image_of_a_folder_gets_its_caption(studio: ComfyServer, trigger: str) -> None:
    result, graph, pairs = caption(studio, trigger)
    assert len(pairs) == len(SCENES)
    texts = [text.removeprefix(trigger) for _, text in pairs]
    assert [trigger + text for text in texts] == [text for _, text in pairs]
    assert texts == [phrasings.describe(scene_of(image)) for image, _ in pairs]
    assert sorted(texts) == sorted(map(phrasings.describe, SCENES))
    # The node shows all of them.
    assert result.outputs[graph.find("OvisU1Understand")]["text"] == texts
    assert len(result.outputs[graph.find("PreviewImage")]["images"]) == len(SCENES)


def test_workflow_that_trains_a_lora_reads_the_captions(studio: ComfyServer) -> None:
    _, _, saved = caption(studio, "ohwx, ")
    shutil.copytree(studio.base / "output" / PAIRS, studio.base / "input" / PAIRS)
    (folder,) = (
        node["widgets_values"]
        for node in read_workflow("train_lora")["nodes"]
        if node["type"] == "LoadImageTextDataSetFromFolder"
    )
    graph = Graph({"1": {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": folder[0]}}})
    images = graph.add("SaveImage", images=["1", 0], filename_prefix="tests/read")
    texts = graph.add("PreviewAny", source=["1", 1])
    result = studio.run(graph.prompt)
    read = zip(saved_images(studio, result, images), result.outputs[texts]["text"], strict=True)
    assert sorted((image.tobytes(), text) for image, text in read) == sorted(
        (image.tobytes(), text) for image, text in saved
    )


def test_image_is_made_from_the_enriched_prompt(studio: ComfyServer) -> None:
    graph = workflow(studio, "enrich_prompt").set("OvisU1Sampler", steps=built_in.STEPS, seed=1)
    graph.set_all("PrimitiveInt", value=built_in.SIDE).set("PrimitiveStringMultiline", value="a red circle")
    asked = graph.add("PreviewAny", source=graph.out("StringConcatenate"))
    shown = next(node for node in graph.find_all("PreviewAny") if node != asked)
    result = studio.run(graph.prompt)
    question, text = (result.outputs[node]["text"][0] for node in (asked, shown))
    assert question.endswith("Idea: a red circle")
    assert result.outputs[graph.find("OvisU1Understand")]["text"] == [text]
    # The small model has learned questions about images only, so it describes an image that it invents.
    assert phrasings.described(scene_of(saved_image(studio, result, graph)), text)
    assert text != "a red circle"
