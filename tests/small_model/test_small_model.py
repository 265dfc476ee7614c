"""The small model that comes with the pack: it is unpacked, listed and loaded, and it draws, edits and answers."""

from __future__ import annotations

import lzma
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cases
import flat_shapes
import phrasings
import pytest
import torch
from cases import from_png
from PIL import Image

import demo_run
import workspace
from comfy_prompt import PromptRejected
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS
from helpers.graphs import load, models, saved_image
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in
from ovis_core.weights.safetensors_file import CheckpointError

WHOLE = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")


# ---- unpacking


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed file in a folder of the pack that cannot be written to."""
    file = tmp_path / "pack" / "ovis-u1-shapes.safetensors.xz"
    file.parent.mkdir()
    file.write_bytes(lzma.compress(random.Random(1).randbytes(1 << 20)))
    file.parent.chmod(0o555)
    monkeypatch.setattr(built_in, "FILE", file)
    return file


def files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_several_threads_unpack_one_complete_file(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "temp"
    with ThreadPoolExecutor(4) as pool:
        (made,) = set(pool.map(lambda _: built_in.unpack(folder), range(8)))
    assert made.read_bytes() == lzma.decompress(packed.read_bytes())
    assert files(folder) == ["ovis-u1-shapes.safetensors"]
    monkeypatch.setattr(built_in, "_unpacked", {})  # as in another process
    before = made.stat().st_ino
    assert built_in.unpack(folder).stat().st_ino == before
    assert files(folder) == ["ovis-u1-shapes.safetensors"]


def test_missing_or_changed_file_is_unpacked_again(packed: Path, tmp_path: Path) -> None:
    """ComfyUI empties its folder for temporary files; a second one may share it."""
    made = built_in.unpack(tmp_path)
    whole = made.read_bytes()
    kept = made.stat().st_ino
    assert built_in.unpack(tmp_path).stat().st_ino == kept
    made.write_bytes(whole[:-1])
    assert built_in.unpack(tmp_path).read_bytes() == whole
    made.unlink()
    assert built_in.unpack(tmp_path).read_bytes() == whole


def test_error_for_a_damaged_file_leaves_no_files(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temp"
    for data in (packed.read_bytes()[:-100], b"version https://git-lfs", b""):
        packed.chmod(0o644)
        packed.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"ovis-u1-shapes.safetensors.xz is damaged .*install the pack again"):
            built_in.unpack(folder)
        assert files(folder) == []


def test_error_for_an_unusable_folder(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temp"
    folder.write_bytes(b"a file")
    with pytest.raises(CheckpointError, match=r"temp cannot be written .*check the free space"):
        built_in.unpack(folder)


# ---- scenes


def test_drawn_scenes_are_recognised() -> None:
    rng = random.Random(11)
    for i in range(300):
        scene = flat_shapes.make_scene(rng, test=i % 2 == 0, shapes=1 + i % 3 // 2)
        found = flat_shapes.recognise(flat_shapes.draw([scene])[0])
        assert flat_shapes.same(found, scene), scene
        assert flat_shapes.kept(found, scene), scene
        if len(scene.shapes) == 1:
            for kind in phrasings.EDITS:
                assert not flat_shapes.same(found, phrasings.edit(scene, kind, rng)[1])


def test_no_shape_is_recognised_in_a_plain_image() -> None:
    assert flat_shapes.recognise(flat_shapes.colour_of("blue").view(3, 1, 1).expand(3, 128, 128)) == flat_shapes.Scene(
        "blue", ()
    )
    noise = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(1))
    scene = flat_shapes.make_scene(random.Random(1), test=False)
    assert not flat_shapes.same(flat_shapes.recognise(noise), scene)


# ---- the loader


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI into which the pack has just been installed, without any model."""
    base = workspace.make_base(tmp_path_factory.mktemp("bare"), ROOT, comfyui_path())
    with ComfyServer(comfyui_path(), base, DEVICE_ARGS) as running:
        yield running


@WHOLE
def test_built_in_model_is_listed_last(info: dict[str, Any]) -> None:
    *others, last = models(info)
    assert last == built_in.NAME
    assert "tiny" in others
    assert built_in.NAME not in others


@WHOLE
def test_built_in_model_is_the_default_without_other_models(bare: ComfyServer) -> None:
    info = bare.object_info()
    assert models(info) == [built_in.NAME]
    missing = load("text_to_image", info).set("OvisU1Loader", model_name="Ovis-U1-3B")
    words = rf"run Ovis-U1 Download, .*, or choose '{built_in.NAME[:14]}.*', which needs no download and draws one c"
    with pytest.raises(PromptRejected, match=words):
        bare.run(missing.prompt)


@WHOLE
def test_warning_for_an_image_size_without_training(bare: ComfyServer) -> None:
    info = bare.object_info()
    graph = load("text_to_image", info).set("OvisU1Loader", model_name=built_in.NAME).set("OvisU1Sampler", steps=1)
    cleared = []
    for side in (128, 160, 128):
        for node in graph.find_all("PrimitiveInt"):
            graph.set_node(node, value=side)
        before = len(bare.log_text())
        result = bare.run(graph.prompt, page="one")
        log = bare.log_text()[before:]
        said = [event["data"]["text"] for event in result.events if event["type"] == "progress_text"]
        warned = "Ovis-U1: Set width and height to 128, or scale the source image of an edit: this model was trained on"
        assert log.count(warned) == (side == 160)
        assert any("Set width and height to 128" in text for text in said) == (side == 160)
        cleared.append(" " in said)
    assert cleared == [False, False, True]
    assert "Ovis-U1: ovis-u1-shapes (built in) draws only one circle, square or triangle" in bare.log_text()


@WHOLE
def test_results_of_another_image_size_keep_their_warning(bare: ComfyServer, tmp_path: Path) -> None:
    """On the node, below the text that replaces it there; not in the text that other nodes get."""
    scene = flat_shapes.Scene("white", (flat_shapes.Shape("square", "blue", "", "", 64, 64, 30),))
    clip, image = ["1", 1], ["2", 0]
    nodes = {
        "OvisU1Understand": {"prompt": "Describe this image.", "image": image},
        "OvisU1Judge": {"images": image, "question": "Is there a square?", "prompt": ""},
        "OvisU1Improve": {"model": ["1", 0], "vae": ["1", 2], "image": image, "prompt": "a square", "threshold": 1.0}
        | {"rounds": 0, "seed": 1, "steps": 1, "txt_cfg": 6.0, "img_cfg": 1.5},
    }
    texts = {"OvisU1Understand": 0, "OvisU1Judge": 2, "OvisU1Improve": 2}  # slots
    for side in (128, 640):
        file = tmp_path / f"{side}.png"
        flat_shapes.to_image(flat_shapes.draw((scene,))[0]).resize((side, side)).save(file)
        prompt = {
            "1": {"class_type": "OvisU1Loader", "inputs": {"model_name": built_in.NAME, "weight_dtype": "default"}},
            "2": {"class_type": "LoadImage", "inputs": {"image": bare.upload(file)}},
        }
        for kind, inputs in nodes.items():
            prompt[kind] = {"class_type": kind, "inputs": {"clip": clip, **inputs}}
            prompt[f"text of {kind}"] = {"class_type": "PreviewAny", "inputs": {"source": [kind, texts[kind]]}}
        outputs = bare.run(prompt).outputs
        for kind in nodes:
            (text,) = outputs[f"text of {kind}"]["text"]
            (shown,) = outputs[kind]["ovis_u1_text"][0] if kind == "OvisU1Improve" else outputs[kind]["text"]
            first, *more = shown.split("\n\n")
            assert first == text
            assert len(more) == (side != 128)
            assert all("answer about an image of 640 x 640 will probably be wrong" in warning for warning in more)


@WHOLE
def test_answers_about_several_images_are_right(bare: ComfyServer, tmp_path: Path) -> None:
    """One answer about both, which must find the right one, and one about each."""
    square = flat_shapes.Scene("white", (flat_shapes.Shape("square", "blue", "", "", 64, 64, 30),))
    circle = flat_shapes.Scene("yellow", (flat_shapes.Shape("circle", "red", "", "", 64, 64, 30),))
    info = bare.object_info()
    graph = load("multi_image", info).set("OvisU1Loader", model_name=built_in.NAME)
    node, (preview,) = graph.find("OvisU1Understand"), graph.find_all("PreviewAny")
    uploaded = {}
    for name, scene in (("square", square), ("circle", circle)):
        (data,) = cases.source_files(cases.Case("describe", "", "", (scene,)))
        (tmp_path / f"{name}.png").write_bytes(data)
        uploaded[name] = bare.upload(tmp_path / f"{name}.png")
    for order in (("square", "circle"), ("circle", "square")):
        for loader, name in zip(graph.find_all("LoadImage"), order, strict=True):
            graph.set_node(loader, image=uploaded[name])
        for kind, colour in (("square", "blue"), ("circle", "red")):
            graph.set_node(node, prompt=f"What color is the {kind}?", max_new_tokens=24, each_image=False)
            assert bare.run(graph.prompt).outputs[preview]["text"] == [colour], order
        graph.set_node(node, prompt="Describe this image.", each_image=True)
        answers = bare.run(graph.prompt).outputs[preview]["text"]
        scenes = [square if name == "square" else circle for name in order]
        assert [phrasings.described(scene, answer) for scene, answer in zip(scenes, answers, strict=True)] == [
            True,
            True,
        ]


# ---- the demo


def scene_in(file: Path) -> flat_shapes.Scene:
    return flat_shapes.recognise(from_png(file.read_bytes()))


@WHOLE
def test_demo_makes_an_image_edits_it_and_answers(bare: ComfyServer, tmp_path: Path) -> None:
    made = demo_run.make(bare, demo_run.choose(bare.base, None), tmp_path)
    shape = flat_shapes.Shape("triangle", "blue", "", "", 0, 0, 0)
    first, edited = scene_in(made.image), scene_in(made.edited)
    assert flat_shapes.same(first, flat_shapes.Scene("yellow", (shape,)))
    assert flat_shapes.same(edited, first.change(colour="red"))
    assert flat_shapes.kept(edited, first)
    assert made.answer == "red"
    assert made.seconds < 60
    strip = Image.open(made.strip)
    assert strip.width > 2 * strip.height


@WHOLE
def test_edit_of_one_image_is_right_and_of_two_images_runs(bare: ComfyServer, tmp_path: Path) -> None:
    """In the workflow for two images. The small model was trained on edits of one image."""
    info = bare.object_info()
    scenes = [
        flat_shapes.Scene("white", (flat_shapes.Shape("square", "blue", "", "", 64, 64, 30),)),
        flat_shapes.Scene("yellow", (flat_shapes.Shape("circle", "red", "", "", 64, 64, 30),)),
    ]
    graph = load("edit_two", info).set("OvisU1Loader", model_name=built_in.NAME)
    graph.set("OvisU1EditEncode", prompt="make the square red").set("OvisU1Sampler", steps=20, seed=1)
    for number, (node, pixels) in enumerate(zip(graph.find_all("LoadImage"), flat_shapes.draw(scenes), strict=True)):
        file = tmp_path / f"{number}.png"
        flat_shapes.to_image(pixels).save(file)
        graph.set_node(node, image=bare.upload(file))
    one = graph.copy()
    del one.prompt[one.find("OvisU1EditEncode")]["inputs"]["images.image_2"]
    made = []
    for edit in (one, graph):
        file = tmp_path / f"made{len(made)}.png"
        saved_image(bare, bare.run(edit.prompt), edit).save(file)
        made.append(Image.open(file))
    assert flat_shapes.same(scene_in(tmp_path / "made0.png"), scenes[0].change(colour="red"))
    assert made[0].size == made[1].size == (flat_shapes.SIDE, flat_shapes.SIDE)
    assert made[0].tobytes() != made[1].tobytes()


def test_demo_reports_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(built_in, "FILE", tmp_path / "nothing.xz")
    (tmp_path / "base").mkdir()
    demo = demo_run.choose(tmp_path / "base", None)
    assert (demo.name, demo.side) == (demo_run.TINY, 256)
    assert capsys.readouterr().out.startswith(
        "This copy of the pack lacks its small model, so one of random weights runs"
    )


@WHOLE
@pytest.mark.parametrize("source", [built_in.SHORT_NAME, built_in.NAME, str(built_in.FILE)])
def test_convert_takes_the_built_in_model(tmp_path: Path, source: str) -> None:
    out = tmp_path / "shapes.safetensors"
    command = [sys.executable, ROOT / "scripts" / "convert.py", source, out, "--dtype", "fp8_e4m3fn"]
    ran = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert out.stat().st_size < built_in.unpack(tmp_path).stat().st_size
