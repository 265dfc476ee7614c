"""The graphs of the loop that improves an image."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ovis_core.improvement.rounds import Goal
from ovis_core.text.prompts import ANSWER_SLOT, FITS

GOAL = Goal("a red cat", 0.8, 3, "What is wrong?", ANSWER_SLOT)


class Part:
    """Stands for a MODEL, CLIP or VAE, which a graph only passes on."""

    tokenizer = SimpleNamespace(side=None)


@pytest.fixture
def start(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts the loop of this many images."""
    import folder_paths

    from ovis_core.native import improving

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    parts = {name: Part() for name in ("model", "clip", "vae")}
    sampler = {"steps": 2, "txt_cfg": 6.0, "img_cfg": 1.5}
    return lambda images: improving.start(GOAL, torch.rand(images, 8, 8, 3), parts, sampler, 1, FITS)


def loops(graph: dict[str, Any]) -> list[Any]:
    """The argument `loop` of each step in a graph."""
    from ovis_core.native import improving

    return [node["inputs"]["loop"] for node in graph.values() if node["class_type"] == improving.STEP]


def test_the_nodes_have_the_inputs_of_their_schemas(start: Any, info: dict[str, Any]) -> None:
    """A renamed, missing or additional input would fail only in the middle of a loop."""
    from ovis_core.native import improving

    first = start(2)
    (one, two) = loops(first.graph)
    judged = improving.step(one)
    asked = improving.step(one, score=0.1)
    edited = improving.step(replace(two, rounds=two.rounds.judged(0.1)), answer="Add a cat.")
    found = set()
    for made in (first, judged, asked, edited):
        for node in made.graph.values():
            name, inputs = node["class_type"], node["inputs"]
            found.add(name)
            given, schema = set(inputs), info[name]["input"]
            required, optional = set(schema.get("required", {})), set(schema.get("optional", {}))
            assert required <= given <= required | optional, name
            for link in inputs.values():
                if isinstance(link, list):
                    source = made.graph[link[0]]["class_type"]
                    assert link[1] < len(info[source]["output"]), (name, link)
        assert all(link[0] in made.graph for link in made.outputs)
    assert found == {
        improving.STEP,
        improving.RESULT,
        "OvisU1Judge",
        "OvisU1Understand",
        "OvisU1EditEncode",
        "OvisU1Sampler",
        "OvisU1Decode",
    }
    assert len(info["OvisU1Improve"]["output"]) == len(info[improving.RESULT]["output"]) == improving.OUTPUTS


@pytest.mark.usefixtures("start")
def test_copies_of_the_text_become_complete_too() -> None:
    """Newer versions of ComfyUI keep a copy of each result."""
    from ovis_core.native.page.results import GrowingText

    text = GrowingText("Judging the image")
    kept = copy.deepcopy(text.ui)
    text.replace("Result: the input image", complete=True)
    assert kept == text.ui == GrowingText("Result: the input image").ui
    assert kept["ovis_u1_text"] == (["Result: the input image"],)


def test_the_images_of_a_batch_are_side_by_side(start: Any) -> None:
    """Each image's graph is inside its own first step, so the depth does not grow with the batch."""
    from ovis_core.native import improving

    first = start(improving.MAX_IMAGES)
    assert len(loops(first.graph)) == improving.MAX_IMAGES
    with pytest.raises(ValueError, match=r"image: expected at most 256 images, got 257; split the batch"):
        start(improving.MAX_IMAGES + 1)
