"""Every check of every node, with values that a node of another pack can return."""

from __future__ import annotations

from typing import Any

import pytest

from comfy_prompt import PromptFailed
from comfy_server import ComfyServer
from helpers.graphs import Graph, load, text_to_image

CHECKS = [
    ("OvisU1TextEncode", "clip", "another clip", r"clip: expected an Ovis-U1 CLIP, got Identity; connect the CLIP of"),
    ("OvisU1TextEncode", "clip", "a word", r"clip: expected an Ovis-U1 CLIP, got str"),
    ("OvisU1TextEncode", "prompt", "two words", r"prompt: expected text, got list; connect one STRING"),
    ("OvisU1TextEncode", "width", "zero", r"width: expected a whole number from 16 to .*, got 0"),
    ("OvisU1TextEncode", "negative_prompt", "zero", r"negative_prompt: expected text, got int"),
    ("OvisU1EditEncode", "vae", "another vae", r"vae: expected a VAE with 4 latent channels, got 16"),
    ("OvisU1EditEncode", "vae", "a word", r"vae: expected a VAE, got str; connect the VAE of"),
    (
        "OvisU1EditEncode",
        "image",
        "one image",
        r"image: expected an IMAGE of 4 dimensions, got 3 dimensions; connect Load",
    ),
    (
        "OvisU1EditEncode",
        "image",
        "no images",
        r"image: expected at least one image, got an empty batch; connect a node",
    ),
    ("OvisU1EditEncode", "image", "nothing", r"image: expected an IMAGE of 4 dimensions, got NoneType"),
    (
        "OvisU1EditEncode",
        "images.image_3",
        "one image",
        r"images\.image_3: expected an IMAGE of 4 dimensions, got 3 dimensions; connect Load",
    ),
    (
        "OvisU1EditEncode",
        "images.image_2",
        "no images",
        r"images\.image_2: expected at least one image, got an empty",
    ),
    ("OvisU1EditEncode", "images.image_2", "a word", r"images\.image_2: expected an IMAGE of 4 dimensions, got str"),
    ("OvisU1EditEncode", "megapixels", "minus one", r"megapixels: expected a number from 0\.0 to 16\.0, got -1"),
    ("OvisU1EditEncode", "prompt", "two words", r"prompt: expected text, got list"),
    (
        "OvisU1Sampler",
        "model",
        "another model",
        r"model: expected an Ovis-U1 MODEL, got Identity; connect the MODEL of",
    ),
    ("OvisU1Sampler", "steps", "zero", r"steps: expected a whole number from 1 to 10000, got 0"),
    ("OvisU1Sampler", "denoise", "minus one", r"denoise: expected a number from 0\.0 to 1\.0, got -1"),
    (
        "OvisU1Sampler",
        "sampler_name",
        "a word",
        r"sampler_name: expected one of euler, .*, \.\.\., got 'a word'; choose one",
    ),
    ("OvisU1Sampler", "latent", "no latent", r"latent: expected a LATENT, got \w+; connect Empty Latent Image"),
    ("OvisU1Sampler", "latent", "a video's latent", r"latent: expected a LATENT of 4 .*, got shape \[1, 4, 2, 8, 8\]"),
    (
        "OvisU1Sampler",
        "latent",
        "a tiny latent",
        r"latent: expected sides .* of 16 pixels, got 64 x 8 pixels; use 64 x 16",
    ),
    ("OvisU1Sampler", "positive", "a word", r"positive: expected CONDITIONING, got str; connect Ovis-U1 Text"),
    ("OvisU1Sampler", "positive", "a conditioning of 7", r"conditioning: expected tensors of width .*, got 7"),
    (
        "OvisU1Sampler",
        "positive",
        "one refined to 7",
        r"conditioning: expected refined conditioning of width \d+, got width 7",
    ),
    ("OvisU1Decode", "samples", "no latent", r"samples: expected a LATENT, got"),
    ("OvisU1Decode", "vae", "another vae", r"vae: expected a VAE with 4 latent channels"),
    (
        "OvisU1Loader",
        "weight_dtype",
        "a word",
        r"weight_dtype: expected one of default, .*[^.], got 'a word'; choose one",
    ),
    ("OvisU1Loader", "model_name", "a word", r"model_name: 'a word' was not found; choose one of"),
    ("OvisU1Understand", "clip", "another clip", r"clip: expected an Ovis-U1 CLIP, got Identity"),
    ("OvisU1Understand", "history", "a word", r"history: expected a conversation, got str; connect the history"),
    ("OvisU1Understand", "video", "one image", r"video: expected an IMAGE of 4 dimensions, got 3"),
    ("OvisU1Understand", "video", "a word", r"video: expected a VIDEO or an IMAGE, got str; connect Load Video, or a"),
    ("OvisU1Understand", "video", "no images", r"video: expected at least one image, got an empty batch"),
    ("OvisU1Understand", "system_prompt", "two words", r"system_prompt: expected text, got list"),
    ("OvisU1Understand", "top_k", "a million", r"top_k: expected a whole number from 0 to 1000, got 1000000"),
    ("OvisU1Judge", "prompt", "no words", r"prompt: expected text for \{prompt\} in question, got none; enter a"),
    ("OvisU1Judge", "images", "no images", r"images: expected at least one image, got an empty batch"),
    ("OvisU1Judge", "question", "zero", r"question: expected text, got int"),
    (
        "OvisU1Improve",
        "model",
        "another model",
        r"model: expected an Ovis-U1 MODEL, got Identity; connect the MODEL of",
    ),
    ("OvisU1Improve", "clip", "another clip", r"clip: expected an Ovis-U1 CLIP, got Identity"),
    ("OvisU1Improve", "vae", "another vae", r"vae: expected a VAE with 4 latent channels, got 16"),
    ("OvisU1Improve", "image", "one image", r"image: expected an IMAGE of 4 dimensions, got 3"),
    ("OvisU1Improve", "image", "no images", r"image: expected at least one image, got an empty batch"),
    ("OvisU1Improve", "prompt", "no words", r"prompt: expected text for \{prompt\} in judge_question, got none"),
    ("OvisU1Improve", "prompt", "two words", r"prompt: expected text, got list"),
    ("OvisU1Improve", "threshold", "minus one", r"threshold: expected a number from 0\.0 to 1\.0, got -1"),
    ("OvisU1Improve", "rounds", "a million", r"rounds: expected a whole number from 0 to 50, got 1000000"),
    ("OvisU1Improve", "steps", "zero", r"steps: expected a whole number from 1 to 10000, got 0"),
    ("OvisU1Improve", "instruction", "no words", r"instruction: expected text, got none; enter text"),
    ("OvisU1Improve", "question", "zero", r"question: expected text, got int"),
]


@pytest.fixture(scope="module")
def graphs(info: dict[str, Any]) -> dict[str, Graph]:
    """Class of a node -> a small graph with it."""
    small = {"width": 64, "height": 64}
    picture = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    paint = text_to_image(info, 64, 64, steps=1)
    edit = load("edit", info).set("OvisU1Sampler", steps=1)
    understand = load("understand", info).set("OvisU1Understand", max_new_tokens=1)
    best = load("pick_the_best", info).set("OvisU1Sampler", steps=1).set_all("PrimitiveInt", value=64)
    best.set("EmptyLatentImage", batch_size=1, **small)
    for graph in (edit, understand):
        graph.prompt[graph.find("LoadImage")] = {"class_type": "EmptyImage", "inputs": picture}
    improve = load("improve", info).set("OvisU1Sampler", steps=1).set_all("PrimitiveInt", value=64)
    improve.set("OvisU1Improve", steps=1, rounds=1)
    found = {"OvisU1Improve": improve, "OvisU1EditEncode": edit, "OvisU1Understand": understand, "OvisU1Judge": best}
    return {name: found.get(name, paint) for name, *_ in CHECKS}


@pytest.mark.parametrize(("node", "name", "value", "words"), CHECKS)
def test_errors_for_wrong_inputs(
    server: ComfyServer, graphs: dict[str, Graph], node: str, name: str, value: str, words: str
) -> None:
    graph = graphs[node].copy()
    graph.set(node, **{name: [graph.add("OtherValue", name=value), 0]})
    with pytest.raises(PromptFailed, match=words) as caught:
        server.run(graph.prompt)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "node", ["OvisU1Sampler", "OvisU1EditEncode", "OvisU1Understand", "OvisU1Judge", "OvisU1Improve"]
)
def test_graphs_without_wrong_inputs_run(server: ComfyServer, graphs: dict[str, Graph], node: str) -> None:
    assert server.run(graphs[node].prompt).outputs


def test_errors_for_wrong_inputs_of_scheduler_and_guider(server: ComfyServer, info: dict[str, Any]) -> None:
    graph = text_to_image(info, 64, 64, steps=1)
    model, latent = graph.out("OvisU1Loader"), graph.out("EmptyLatentImage")
    positive = graph.out("OvisU1TextEncode")
    number = [graph.add("OtherValue", name="minus one"), 0]
    other = [graph.add("OtherValue", name="another model"), 0]
    sampler = graph.add("KSamplerSelect", sampler_name="euler")
    noise = graph.add("RandomNoise", noise_seed=1)
    sigmas = graph.add("OvisU1Scheduler", model=model, latent=latent, steps=1, denoise=1.0)
    guider = graph.add("OvisU1Guider", model=model, positive=positive, negative=positive, txt_cfg=1.0)
    links = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
    inputs = {name: [node, 0] for name, node in links.items()}
    sampled = graph.add("SamplerCustomAdvanced", latent_image=latent, **inputs)
    graph.set("OvisU1Decode", samples=[sampled, 0]).remove("OvisU1Sampler")
    assert server.run(graph.prompt).outputs
    for node, name, value, words in (
        (sigmas, "steps", number, r"steps: expected a whole number .*, got -1"),
        (sigmas, "model", other, r"model: expected an Ovis-U1 MODEL, got Identity"),
        (guider, "txt_cfg", number, r"txt_cfg: expected a number from 0\.0 .*, got -1"),
        (guider, "negative", number, r"negative: expected CONDITIONING, got int"),
        (guider, "cfg_end", number, r"cfg_end: expected a number from 0\.0 to 1\.0, got -1"),
        (guider, "cfg_start", 1.0, r"cfg_start: expected less than cfg_end \(1\.0\), got 1\.0; lower cfg_start"),
    ):
        wrong = graph.copy().set_node(node, **{name: value})
        with pytest.raises(PromptFailed, match=words):
            server.run(wrong.prompt)


@pytest.mark.parametrize("node", ["OvisU1EditEncode", "OvisU1Understand"])
def test_error_for_an_image_in_the_place_of_growing_inputs(
    server: ComfyServer, graphs: dict[str, Graph], node: str
) -> None:
    """A prompt over the API that names the group, not an input of it."""
    graph = graphs[node].copy()
    graph.set(node, images=graph.out("EmptyImage"))
    with pytest.raises(
        PromptFailed, match=r"images: expected inputs with names such as images\.image_2, got Tensor; co"
    ):
        server.run(graph.prompt)


def test_error_for_a_missing_part_file_from_a_link(server: ComfyServer, info: dict[str, Any]) -> None:
    """Missing files, named over links, which no list can check."""
    graph = text_to_image(info, 64, 64, steps=1)
    word = [graph.add("OtherValue", name="a word"), 0]
    names = ("diffusion_model_name", "text_encoder_name", "vae_name")
    parts = graph.add("OvisU1LoadParts", weight_dtype="default", **dict.fromkeys(names, word))
    graph.set("OvisU1Sampler", model=[parts, 0])
    with pytest.raises(PromptFailed, match=r"diffusion_model_name: 'a word' was not found in models/diffusion_models"):
        server.run(graph.prompt)


def test_error_if_image_only_and_negative_are_swapped(server: ComfyServer, graphs: dict[str, Graph]) -> None:
    graph = graphs["OvisU1EditEncode"].copy()
    sampler = graph.prompt[graph.find("OvisU1Sampler")]["inputs"]
    graph.set("OvisU1Sampler", image_only=sampler["negative"], negative=sampler["image_only"])
    with pytest.raises(
        PromptFailed, match=r"image_only: expected conditioning with a reference image, got none; connect image_only of"
    ):
        server.run(graph.prompt)
