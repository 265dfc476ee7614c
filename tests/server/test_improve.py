"""Ovis-U1 Improve in a running ComfyUI, with the small model that comes with the pack, whose edits must be right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import flat_shapes
import numpy as np
import pytest
import torch
from flat_shapes import Scene, Shape
from PIL import Image

import workspace
from comfy_prompt import PromptFailed, Result
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS
from helpers.graphs import Prompt, saved_images
from helpers.paths import ROOT, comfyui_path
from ovis_core.text.prompts import FITS
from ovis_core.weights import built_in

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

RED = Scene("white", (Shape("circle", "red", "", "", 64, 64, 30),))
BLUE = RED.change(colour="blue")
NODE, IMAGE, SHOWN = "1", "4", {"best": "5", "scores": "6", "log": "7"}  # ids in the prompts
# The small model knows this question, and instructions of this form.
WORDS = {"question": "What shape is it?", "instruction": "make the {answer} blue"}
LIMIT = 256  # images of a batch
NUMBERS = count()
SOURCES: dict[str, torch.Tensor] = {}  # uploaded images by their names
EDIT = ["OvisU1EditEncode", "OvisU1Sampler", "OvisU1Decode", "OvisU1Judge"]


def upload(server: ComfyServer, folder: Path, scene: Scene, size: tuple[int, int] = (128, 128)) -> str:
    """An image of the scene that differs from each other one in a pixel, so that nothing about it is known yet."""
    number = next(NUMBERS)
    drawn = (flat_shapes.draw([scene])[0].permute(1, 2, 0) * 255).round().byte()
    drawn[0, 0] = torch.tensor([number % 256, number // 256, 255])
    image = Image.fromarray(drawn.numpy()).resize(size, Image.Resampling.NEAREST)
    image.save(folder / f"improve_{number}.png")
    name = server.upload(folder / f"improve_{number}.png")
    SOURCES[name] = pixels(image)
    return name


def improve(source: str | list[Any], prompt: str = "a blue circle on a white background", **inputs: Any) -> Prompt:
    """A prompt that improves an image, with few steps; `source` is an uploaded image or a link."""
    values = {"threshold": 0.9, "rounds": 2, "seed": 3, "steps": 10, "txt_cfg": 6.0, "img_cfg": 1.5, **WORDS, **inputs}
    image = [IMAGE, 0] if isinstance(source, str) else source
    parts = {name: ["2", slot] for slot, name in enumerate(("model", "clip", "vae"))}
    return {
        NODE: {"class_type": "OvisU1Improve", "inputs": {**parts, "image": image, "prompt": prompt, **values}},
        "2": {"class_type": "OvisU1Loader", "inputs": {"model_name": built_in.NAME, "weight_dtype": "default"}},
        **({IMAGE: {"class_type": "LoadImage", "inputs": {"image": source}}} if isinstance(source, str) else {}),
        SHOWN["best"]: {"class_type": "SaveImage", "inputs": {"images": [NODE, 0], "filename_prefix": "improve"}},
        SHOWN["scores"]: {"class_type": "PreviewAny", "inputs": {"source": [NODE, 1]}},
        SHOWN["log"]: {"class_type": "PreviewAny", "inputs": {"source": [NODE, 2]}},
    }


def shown(result: Result, name: str) -> list[str]:
    return result.outputs[SHOWN[name]]["text"]


def log(result: Result) -> list[str]:
    """The lines of the log, which the node shows too; for another size of images also a warning."""
    (text,) = shown(result, "log")
    ((on_node,),) = result.outputs[NODE]["ovis_u1_text"]
    assert on_node == text or on_node.startswith(f"{text}\n\nThis model was trained on images of 128 x 128 pixels")
    return text.splitlines()


def scores(result: Result) -> list[float]:
    return [float(text) for text in shown(result, "scores")]


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1) / 255


def best(server: ComfyServer, result: Result) -> list[Image.Image]:
    return saved_images(server, result, SHOWN["best"])


def ran(result: Result) -> list[str]:
    """The classes of the nodes inside the loop that were computed, in order; steps of the loop and slices left out."""
    inner = [node for node in result.executed_nodes if node.startswith(f"{NODE}.")]
    names = {"judge": "OvisU1Judge", "ask": "OvisU1Understand", "encode": EDIT[0], "sample": EDIT[1], "decode": EDIT[2]}
    return [names[name] for node in inner if (name := node.rsplit(".", 1)[1]) in names]


@pytest.fixture
def red(server: ComfyServer, tmp_path: Path) -> str:
    """An image of a red circle."""
    return upload(server, tmp_path, RED)


def test_a_wrong_image_is_edited_until_it_fits(server: ComfyServer, red: str) -> None:
    result = server.run(improve(red))
    (image,) = best(server, result)
    seen = flat_shapes.recognise(pixels(image))
    assert flat_shapes.same(seen, BLUE)
    assert flat_shapes.kept(seen, BLUE)
    (score,) = scores(result)
    first, instruction, second, end = log(result)
    assert first.startswith("Input image: 0.")
    assert float(first.split()[-1]) < 0.1
    assert instruction == "Round 1: make the circle blue"
    assert second == f"  {score:.4f}, better, kept"
    assert end == f"Result: round 1, {score:.4f}, which reaches the threshold of 0.9."
    assert score >= 0.9
    assert ran(result) == ["OvisU1Judge", "OvisU1Understand", *EDIT]


def test_scores_are_those_of_judge(server: ComfyServer, red: str) -> None:
    prompt = improve(red, seed=4)
    inputs = {"clip": ["2", 1], "question": 'Does this image fit the description "{prompt}"? Answer yes or no.'}
    for node, link in (("8", [IMAGE, 0]), ("9", [NODE, 0])):
        judge = {**inputs, "images": link, "prompt": prompt[NODE]["inputs"]["prompt"]}
        prompt[node] = {"class_type": "OvisU1Judge", "inputs": judge}
    result = server.run(prompt)
    before, after = (result.outputs[node]["text"][0].split()[-1] for node in ("8", "9"))
    assert log(result)[0] == f"Input image: {before}"
    assert f"{scores(result)[0]:.4f}" == after
    assert float(after) > float(before)


def test_an_image_that_fits_is_returned_unchanged(server: ComfyServer, red: str) -> None:
    result = server.run(improve(red, "a red circle on a white background"))
    (image,) = best(server, result)
    assert torch.equal(pixels(image), SOURCES[red])
    assert ran(result) == ["OvisU1Judge"]
    assert log(result)[1].startswith("Result: the input image, ")


@pytest.mark.parametrize("changes", [{"rounds": 0}, {"threshold": 0.0}])
def test_without_rounds_or_threshold_it_only_judges(server: ComfyServer, red: str, changes: dict[str, Any]) -> None:
    result = server.run(improve(red, **changes))
    assert torch.equal(pixels(best(server, result)[0]), SOURCES[red])
    assert ran(result) == ["OvisU1Judge"]
    assert scores(result)[0] < 0.1


def test_edits_that_are_not_better_are_discarded(server: ComfyServer, red: str) -> None:
    """The instruction leads away from the prompt, so the image stays; each round has another seed."""
    inputs = {"instruction": "turn it into a triangle", "threshold": 1.0, "steps": 4, "rounds": 2}
    result = server.run(improve(red, "a red circle on a white background", **inputs))
    assert torch.equal(pixels(best(server, result)[0]), SOURCES[red])
    first, *rounds, _ = log(result)
    assert f"{scores(result)[0]:.4f}" == first.split()[-1]
    assert [line for line in rounds if line.startswith("Round")] == [
        "Round 1: turn it into a triangle",
        "Round 2: turn it into a triangle",
    ]
    assert sum(line.endswith("not better, discarded") for line in rounds) == 2
    assert ran(result) == ["OvisU1Judge", *EDIT, *EDIT]  # without a question
    values = {line.split(",")[0].strip() for line in rounds if "discarded" in line}
    assert len(values) == 2


def test_with_its_own_texts_the_score_is_that_of_the_saved_image(server: ComfyServer, red: str) -> None:
    """The small model does not know the question, so its answer may be anything."""
    prompt = improve(red, threshold=1.0, rounds=1)
    for name in WORDS:
        del prompt[NODE]["inputs"][name]
    result = server.run(prompt)
    assert ran(result)[:2] == ["OvisU1Judge", "OvisU1Understand"]
    (file,) = result.outputs[SHOWN["best"]]["images"]
    judge = {
        "8": {"class_type": "LoadImageOutput", "inputs": {"image": f"{file['filename']} [output]"}},
        "2": prompt["2"],
        "9": {
            "class_type": "OvisU1Judge",
            "inputs": {
                "clip": ["2", 1],
                "images": ["8", 0],
                "question": FITS,
                "prompt": prompt[NODE]["inputs"]["prompt"],
            },
        },
    }
    saved = float(server.run(judge).outputs["9"]["text"][0].split()[-1])
    assert scores(result)[0] == pytest.approx(saved, abs=1e-3)  # the file has 8 bits


def test_raising_rounds_continues_after_the_known_rounds(server: ComfyServer, red: str) -> None:
    inputs = {"threshold": 1.0, "steps": 3, "seed": 11}
    first = server.run(improve(red, rounds=1, **inputs))
    assert ran(first) == ["OvisU1Judge", "OvisU1Understand", *EDIT]
    again = server.run(improve(red, rounds=1, **inputs))
    assert not [node for node in again.executed_nodes if node.split(".")[0] == NODE]
    assert log(again) == log(first)
    more = server.run(improve(red, rounds=3, **inputs))
    computed = [name for name in ran(more) if name != "OvisU1Understand"]
    assert computed == EDIT * 2
    assert log(more)[:3] == log(first)[:3]
    # A lower threshold needs nothing new.
    assert ran(server.run(improve(red, rounds=3, **{**inputs, "threshold": 0.99999}))) == []


@pytest.mark.parametrize("changes", [{"seed": 12}, {"steps": 4}, {"instruction": "turn the {answer} blue"}])
def test_other_settings_begin_anew(server: ComfyServer, red: str, changes: dict[str, Any]) -> None:
    inputs = {"threshold": 1.0, "steps": 3, "seed": 11, "rounds": 1}
    server.run(improve(red, **inputs))
    assert ran(server.run(improve(red, **{**inputs, **changes}))) == ["OvisU1Judge", "OvisU1Understand", *EDIT]


def test_another_image_or_model_begins_anew(server: ComfyServer, red: str, tmp_path: Path) -> None:
    server.run(improve(red, rounds=0))
    other = upload(server, tmp_path, BLUE)
    assert ran(server.run(improve(other, rounds=0))) == ["OvisU1Judge"]
    assert ran(server.run(improve(red, rounds=0))) == []
    prompt = improve(red, rounds=0)
    prompt["8"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["2", 1], "stop_at_clip_layer": -1}}
    prompt[NODE]["inputs"]["clip"] = ["8", 0]
    assert ran(server.run(prompt)) == ["OvisU1Judge"]


def test_the_text_is_shown_on_the_node(server: ComfyServer, red: str) -> None:
    result = server.run(improve(red, seed=31))
    texts = [event["data"] for event in result.events if event["type"] == "progress_text"]
    assert {data["node"] for data in texts} == {NODE}
    said = [data["text"] for data in texts]
    # The question's answer while it is generated, then the round, before its score is known.
    for earlier, later in (("circle", "Round 1: make the circle blue"), ("Input image: ", "Result: round 1, ")):
        assert next(i for i, text in enumerate(said) if earlier in text) < next(
            i for i, text in enumerate(said) if later in text
        )
    assert any(text.endswith("Round 1: make the circle blue") for text in said)
    assert kept_texts(result)[-1] == "\n".join(log(result))
    assert any(text.startswith("Input image: ") and "Result" not in text for text in kept_texts(result))


def kept_texts(result: Result) -> list[str]:
    """The texts that the page keeps for the node, in order."""
    kept = [event["data"] for event in result.events if event["type"] == "executed"]
    outputs = [data["output"] for data in kept if data["display_node"] == NODE and data["output"]]
    return ["\n\n".join(text for (text,) in output["ovis_u1_text"]) for output in outputs]


def test_the_loop_is_one_output_of_the_job(server: ComfyServer, red: str) -> None:
    """The nodes of the loop return no results, so nothing replaces the log."""
    result = server.run(improve(red, seed=32))
    assert set(result.outputs) == {NODE, *SHOWN.values()}
    # The page opens no job whose outputs have another type.
    assert all(isinstance(text, str) for output in result.outputs.values() for text in output.get("text", ()))
    for file in result.outputs[NODE].get("files", []):
        text = server.image(file).decode()
        assert text == "\n".join(log(result))
    assert all(text.startswith(("Judging the image", "Input image: ")) for text in kept_texts(result))


def test_after_an_interrupt_the_log_is_kept(server: ComfyServer, red: str) -> None:
    result = server.run(
        improve(red, steps=61), on_progress=lambda *step: step[1] == 61 and server.interrupt(), check=False
    )
    assert result.interrupted
    first, second = kept_texts(result)[-1].splitlines()
    assert first.startswith("Input image: 0.")
    assert second == "Round 1: make the circle blue"


def test_each_image_of_a_long_list_is_recalled(server: ComfyServer, tmp_path: Path) -> None:
    """One more round computes nothing that is known."""
    prompt = improve(["12", 0], threshold=1.0, rounds=1, steps=2, seed=51, instruction="turn it into a triangle")
    prompt["12"] = {"class_type": "RebatchImages", "inputs": {"images": ["8", 0], "batch_size": 1}}
    prompt |= batch([upload(server, tmp_path, RED) for _ in range(5)])
    first = server.run(prompt)
    assert sorted(ran(first)) == sorted(["OvisU1Judge", *EDIT] * 5)
    prompt[NODE]["inputs"]["rounds"] = 2
    assert sorted(ran(server.run(prompt))) == sorted(EDIT * 5)


def batch(names: list[str]) -> Prompt:
    """Nodes that load these images; node 8 returns them as a batch."""
    nodes: Prompt = {f"load{i}": {"class_type": "LoadImage", "inputs": {"image": name}} for i, name in enumerate(names)}
    link: list[Any] = ["load0", 0]
    for i in range(1, len(names)):
        last = "8" if i == len(names) - 1 else f"batch{i}"
        nodes[last] = {"class_type": "ImageBatch", "inputs": {"image1": link, "image2": [f"load{i}", 0]}}
        link = [last, 0]
    return nodes


def many(count: int) -> Prompt:
    """Judges this many small images."""
    prompt = improve(["8", 0], rounds=0)
    prompt["8"] = {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": count}}
    prompt["8"]["inputs"]["color"] = next(NUMBERS)
    return prompt


def test_the_depth_of_the_graph_does_not_grow_with_the_batch(server: ComfyServer) -> None:
    """ComfyUI walks down this depth by recursion when the next prompt begins."""
    result = server.run(many(LIMIT))
    assert len(scores(result)) == LIMIT
    assert max(node.count(".") for node in result.executed_nodes) <= 6  # three for each level
    after = server.run(many(1))
    assert len(scores(after)) == 1


def test_a_larger_batch_raises_an_error(server: ComfyServer) -> None:
    with pytest.raises(PromptFailed, match=f"image: expected at most {LIMIT} images, got {LIMIT + 1}; split the batch"):
        server.run(many(LIMIT + 1))


def test_each_image_of_a_batch_is_improved(server: ComfyServer, red: str, tmp_path: Path) -> None:
    fits = upload(server, tmp_path, BLUE)
    prompt = improve(["8", 0])
    for node, name in (("9", fits), ("10", red)):
        prompt[node] = {"class_type": "LoadImage", "inputs": {"image": name}}
    prompt["8"] = {"class_type": "ImageBatch", "inputs": {"image1": ["9", 0], "image2": ["10", 0]}}
    result = server.run(prompt)
    images = best(server, result)
    assert len(images) == 2
    assert all(flat_shapes.same(flat_shapes.recognise(pixels(image)), BLUE) for image in images)
    assert torch.equal(pixels(images[0]), SOURCES[fits])
    assert len(scores(result)) == 2
    assert min(scores(result)) >= 0.9
    assert ran(result) == ["OvisU1Judge", "OvisU1Judge", "OvisU1Understand", *EDIT]
    lines = log(result)
    assert [line for line in lines if line.startswith("Image")] == ["Image 1 of 2", "Image 2 of 2"]
    # More rounds than were needed.
    prompt[NODE]["inputs"]["rounds"] = 5
    assert ran(server.run(prompt)) == []


def test_each_image_of_a_list_is_improved(server: ComfyServer, red: str, tmp_path: Path) -> None:
    """A node that makes a list, and one between it and ours."""
    fits = upload(server, tmp_path, BLUE)
    prompt = improve(["11", 0])
    for node, name in (("9", fits), ("10", red)):
        prompt[node] = {"class_type": "LoadImage", "inputs": {"image": name}}
    prompt["8"] = {"class_type": "ImageBatch", "inputs": {"image1": ["9", 0], "image2": ["10", 0]}}
    prompt["12"] = {"class_type": "RebatchImages", "inputs": {"images": ["8", 0], "batch_size": 1}}
    prompt["11"] = {"class_type": "ImageInvert", "inputs": {"image": ["13", 0]}}
    prompt["13"] = {"class_type": "ImageInvert", "inputs": {"image": ["12", 0]}}
    result = server.run(prompt)
    images = best(server, result)
    assert [flat_shapes.same(flat_shapes.recognise(pixels(image)), BLUE) for image in images] == [True, True]
    assert len(scores(result)) == 2
    assert min(scores(result)) >= 0.9
    assert len(shown(result, "log")) == 2


def test_a_list_of_prompts_gives_a_result_for_each(server: ComfyServer, red: str) -> None:
    """Scores of another node as thresholds: a list of numbers, with one image."""
    prompt = improve(["8", 0], "a red circle on a white background", threshold=["9", 0], rounds=0)
    prompt["8"] = {"class_type": "LoadImage", "inputs": {"image": red}}
    prompt["10"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["8", 0], "amount": 3}}
    question = {"question": "Is the circle red?", "prompt": ""}
    prompt["9"] = {"class_type": "OvisU1Judge", "inputs": {"clip": ["2", 1], "images": ["10", 0], **question}}
    result = server.run(prompt)
    assert len(best(server, result)) == len(scores(result)) == 3


@pytest.mark.parametrize("size", [(200, 100), (97, 131)])
def test_an_edit_has_the_size_of_its_image(server: ComfyServer, tmp_path: Path, size: tuple[int, int]) -> None:
    name = upload(server, tmp_path, RED, size)
    instruction = {"instruction": "make the circle blue", "threshold": 1.0, "rounds": 3, "steps": 6}
    result = server.run(improve(name, judge_question="Is the circle blue?", prompt="", **instruction))
    assert [image.size for image in best(server, result)] == [size]
    assert "better, kept" in "\n".join(log(result))


def test_an_edit_of_an_image_with_an_alpha_channel(server: ComfyServer, red: str) -> None:
    prompt = improve(["8", 0])
    prompt["9"] = {"class_type": "LoadImage", "inputs": {"image": red}}
    prompt["8"] = {"class_type": "JoinImageWithAlpha", "inputs": {"image": ["9", 0], "alpha": ["9", 1]}}
    assert flat_shapes.same(flat_shapes.recognise(pixels(best(server, server.run(prompt))[0])), BLUE)


def test_interrupt_in_an_edit_and_the_next_run_works(server: ComfyServer, red: str) -> None:
    asked: list[int] = []

    def on_progress(value: int, maximum: int) -> None:
        if maximum == 400 and value > 2 and not asked:
            asked.append(value)
            server.interrupt()

    result = server.run(improve(red, steps=400), on_progress=on_progress, check=False)
    assert result.interrupted
    assert asked
    assert server.waiting() == 0
    after = server.run(improve(red, steps=10))
    assert flat_shapes.same(flat_shapes.recognise(pixels(best(server, after)[0])), BLUE)
    assert server.run(improve(red, steps=400, rounds=0)).error is None


def test_what_was_known_before_an_interrupt_is_not_computed_again(server: ComfyServer, red: str) -> None:
    """The score and the answer: the edit with the same settings begins at once."""
    result = server.run(
        improve(red, steps=60), on_progress=lambda *step: step[1] == 60 and server.interrupt(), check=False
    )
    assert result.interrupted
    assert ran(result)[:2] == ["OvisU1Judge", "OvisU1Understand"]
    assert ran(server.run(improve(red, steps=60))) == EDIT


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (
            {"prompt": " "},
            r"prompt: expected text for \{prompt\} in judge_question, got none; enter a prompt",
        ),
        (
            {"judge_question": "Is the circle blue?"},
            r"prompt: expected \{prompt\} in judge_question, instruction or question, got none; add \{prompt\}",
        ),
        ({"judge_question": ""}, r"judge_question: expected text, got none; enter text"),
        ({"instruction": "\n"}, r"instruction: expected text, got none; enter text"),
        ({"question": ""}, r"question: expected text, got none; enter text"),
    ],
)
def test_errors_for_texts_that_do_not_fit(server: ComfyServer, red: str, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(PromptFailed, match=words):
        server.run(improve(red, **inputs))


def test_a_question_that_is_not_asked_may_be_empty(server: ComfyServer, red: str) -> None:
    assert scores(server.run(improve(red, question="", instruction="make the circle blue")))[0] > 0.9


def test_an_error_in_the_loop_names_the_node(server: ComfyServer, red: str) -> None:
    prompt = improve(red)
    prompt["8"] = {"class_type": "OtherValue", "inputs": {"name": "another vae"}}
    prompt[NODE]["inputs"]["vae"] = ["8", 0]
    with pytest.raises(PromptFailed, match="vae: expected a VAE with 4 latent channels, got 16") as caught:
        server.run(prompt)
    assert (caught.value.node_id, caught.value.node_type) == (NODE, "OvisU1Improve")


def test_the_helper_nodes_are_hidden_and_take_only_their_loop(server: ComfyServer, info: dict[str, Any]) -> None:
    helpers = {name: {} for name in info if "OvisU1" in name and not name.startswith("OvisU1")}
    assert len(helpers) == 2
    helpers["_OvisU1ImproveResult"]["results"] = ["1", 0]
    for helper, more in helpers.items():
        assert info[helper].get("dev_only") or info[helper]["deprecated"]
        prompt = {
            "1": {"class_type": "OtherValue", "inputs": {"name": "a word"}},
            "2": {"class_type": helper, "inputs": {"loop": ["1", 0], **more}},
            "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
        }
        with pytest.raises(PromptFailed, match=r"loop: expected a loop of Ovis-U1 Improve, got str; use Ovis-U1 Impro"):
            server.run(prompt)


@pytest.fixture(scope="module")
def without_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = workspace.make_base(tmp_path_factory.mktemp("uncached"), ROOT, comfyui_path())
    with ComfyServer(comfyui_path(), base, [*DEVICE_ARGS, "--cache-none"]) as running:
        yield running


def test_without_a_cache_no_node_runs_twice(without_cache: ComfyServer, tmp_path: Path) -> None:
    red = upload(without_cache, tmp_path, RED)
    prompt = improve(["8", 0])
    prompt["9"] = {"class_type": "LoadImage", "inputs": {"image": red}}
    prompt["8"] = {"class_type": "RepeatImageBatch", "inputs": {"image": ["9", 0], "amount": 2}}
    result = without_cache.run(prompt)
    started = [event["data"]["node"] for event in result.events if event["type"] == "executing"]
    assert len(started) == len(set(started))
    assert [flat_shapes.same(flat_shapes.recognise(pixels(image)), BLUE) for image in best(without_cache, result)] == [
        True,
        True,
    ]
    assert ran(result) == ["OvisU1Judge", "OvisU1Understand", *EDIT]  # the second image is equal
