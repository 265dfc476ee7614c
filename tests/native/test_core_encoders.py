"""Core's nodes that encode prompts for other models, with our CLIP."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

PROMPT, OTHER = "a red fox in the snow", "a blue boat on a lake"
SIZES = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}


def run(module: str, node: str, clip: Any, **inputs: Any) -> Any:
    """Runs a node of core; returns its first output."""
    try:
        found = getattr(importlib.import_module(f"comfy_extras.{module}"), node)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {node}")
    taken = inspect.signature(found.execute).parameters
    return found.execute(clip=clip, **{name: value for name, value in inputs.items() if name in taken})[0]


@pytest.fixture(scope="module")
def plain(loaded: tuple[Any, ...]) -> Tensor:
    """The prompt's conditioning by CLIPTextEncode."""
    clip = loaded[1]
    return clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0]


# Nodes that fill several text encoders, with the inputs that are prompts.
SEVERAL = {
    "CLIPTextEncodeFlux": ("nodes_flux", ("clip_l", "t5xxl"), {"guidance": 3.5}),
    "CLIPTextEncodeSD3": ("nodes_sd3", ("clip_l", "clip_g", "t5xxl"), {"empty_padding": "empty_prompt"}),
    "CLIPTextEncodeSDXL": ("nodes_clip_sdxl", ("text_g", "text_l"), SIZES),
    "CLIPTextEncodeHiDream": ("nodes_hidream", ("clip_l", "clip_g", "t5xxl", "llama"), {}),
    "CLIPTextEncodeHunyuanDiT": ("nodes_hunyuan", ("bert", "mt5xl"), {}),
    "CLIPTextEncodeKandinsky5": ("nodes_kandinsky5", ("clip_l", "qwen25_7b"), {}),
}
ONE = {
    "CLIPTextEncodeSDXLRefiner": ("nodes_clip_sdxl", {"ascore": 6.0, "width": 1024, "height": 1024, "text": PROMPT}),
    "CLIPTextEncodePixArtAlpha": ("nodes_pixart", {"width": 1024, "height": 1024, "text": PROMPT}),
    "TextEncodeQwenImageEdit": ("nodes_qwen", {"prompt": PROMPT}),
    "TextEncodeQwenImageEditPlus": ("nodes_qwen", {"prompt": PROMPT}),
    "TextEncodeZImageOmni": ("nodes_zimage", {"prompt": PROMPT, "auto_resize_images": True}),
}


@torch.inference_mode()
@pytest.mark.parametrize("node", list(SEVERAL))
def test_one_prompt_in_every_input(loaded: tuple[Any, ...], plain: Tensor, node: str) -> None:
    module, names, more = SEVERAL[node]
    encoded = run(module, node, loaded[1], **dict.fromkeys(names, PROMPT), **more)
    assert torch.equal(encoded[0][0], plain)


@torch.inference_mode()
@pytest.mark.parametrize("padding", ["empty_prompt", "none"])
@pytest.mark.parametrize("node", list(SEVERAL))
def test_empty_inputs_are_ignored(loaded: tuple[Any, ...], plain: Tensor, node: str, padding: str) -> None:
    module, names, more = SEVERAL[node]
    clip = loaded[1]
    for name in names:
        texts = {**dict.fromkeys(names, ""), name: PROMPT}
        encoded = run(module, node, clip, **texts, **{**more, "empty_padding": padding})
        assert torch.equal(encoded[0][0], plain), name
    nothing = clip.encode_from_tokens_scheduled(clip.tokenize(""))[0][0]
    assert torch.equal(run(module, node, clip, **dict.fromkeys(names, ""), **more)[0][0], nothing)


@torch.inference_mode()
@pytest.mark.parametrize("node", list(SEVERAL))
def test_error_for_different_prompts(loaded: tuple[Any, ...], node: str) -> None:
    module, names, more = SEVERAL[node]
    for name in names:
        with pytest.raises(ValueError, match=r"^clip: .* different prompts.*, or use Ovis-U1 Text Encode\.$"):
            run(module, node, loaded[1], **{**dict.fromkeys(names, PROMPT), name: OTHER}, **more)


COPIES = {
    "copy": lambda tokens: tokens.copy(),
    "copy.copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "or": lambda tokens: tokens | {},
    "ror": lambda tokens: {} | tokens,
    "dict": dict,
}


@torch.inference_mode()
@pytest.mark.parametrize("how", list(COPIES))
def test_error_for_different_prompts_after_a_copy(loaded: tuple[Any, ...], plain: Tensor, how: str) -> None:
    clip = loaded[1]

    def encode(prompt: str, other: str) -> Tensor:
        tokens = COPIES[how](clip.tokenize(prompt))
        tokens["l"] = clip.tokenize(other)["l"]
        return clip.encode_from_tokens(tokens)

    with pytest.raises(ValueError, match=r"^clip: .* different prompts.*, or use Ovis-U1 Text Encode\.$"):
        encode(PROMPT, OTHER)
    assert torch.equal(encode(PROMPT, PROMPT), plain)
    assert torch.equal(clip.encode_from_tokens(COPIES[how](clip.tokenize(PROMPT))), plain)
    if how != "dict":  # a plain dict does not have the model's own prompt without text
        assert torch.equal(encode(PROMPT, ""), plain)
        assert COPIES[how](clip.tokenize(PROMPT))["any other"]


@torch.inference_mode()
@pytest.mark.parametrize("node", list(ONE))
def test_nodes_with_one_prompt(loaded: tuple[Any, ...], plain: Tensor, node: str) -> None:
    module, inputs = ONE[node]
    assert torch.equal(run(module, node, loaded[1], **inputs)[0][0], plain)


@torch.inference_mode()
def test_lumina_system_prompt_is_part_of_the_text(loaded: tuple[Any, ...]) -> None:
    """Its system prompt is a part of the text."""
    encoded = run("nodes_lumina2", "CLIPTextEncodeLumina2", loaded[1], user_prompt=PROMPT, system_prompt="superior")
    assert encoded[0][0].isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("module", "node", "inputs"),
    [
        ("nodes_qwen", "TextEncodeQwenImageEdit", {"prompt": PROMPT, "image": torch.rand(1, 64, 64, 3)}),
        ("nodes_qwen", "TextEncodeQwenImageEditPlus", {"prompt": PROMPT, "image1": torch.rand(1, 64, 64, 3)}),
        (
            "nodes_boogu",
            "TextEncodeBooguEdit",
            {"prompt": PROMPT, "negative_prompt": "", "images": {"image_1": torch.rand(1, 64, 64, 3)}},
        ),
        ("nodes_ace", "TextEncodeAceStepAudio", {"tags": PROMPT, "lyrics": "la la", "lyrics_strength": 1.0}),
    ],
)
def test_errors_for_images_and_lyrics(loaded: tuple[Any, ...], module: str, node: str, inputs: Any) -> None:
    with pytest.raises(ValueError, match=r"^(images|clip): .*use Ovis-U1 (Edit|Text) Encode"):
        run(module, node, loaded[1], **inputs)


@torch.inference_mode()
@pytest.mark.parametrize(
    "said", [{"lyrics": "la"}, {"image_embeds": torch.zeros(1, 4, 8)}, {"llama_template": "{}"}, {"bpm": 120}]
)
def test_errors_for_unsupported_arguments(loaded: tuple[Any, ...], said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^clip: .* {next(iter(said))}, which Ovis-U1 does not have; use"):
        loaded[1].tokenize(PROMPT, **said)


def test_empty_arguments_are_accepted(loaded: tuple[Any, ...]) -> None:
    given = loaded[1].tokenize(PROMPT, images=[], lyrics="", llama_template="<|im_start|>{}", other=None)
    assert [token[0] for token in given["ovis_u1"][0]][:3] == [t[0] for t in loaded[1].tokenize(PROMPT)["ovis_u1"][0]][
        :3
    ]


@torch.inference_mode()
def test_error_for_clip_set_last_layer(loaded: tuple[Any, ...], plain: Tensor) -> None:
    from nodes import CLIPSetLastLayer

    clip = loaded[1]
    (chosen,) = CLIPSetLastLayer().set_last_layer(clip, -2)
    with pytest.raises(ValueError, match=r"clip: CLIP Set Last Layer chose a layer.*remove that node"):
        chosen.encode_from_tokens_scheduled(chosen.tokenize(PROMPT))
    assert torch.equal(clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))[0][0], plain)
