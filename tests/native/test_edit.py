"""Editing in ComfyUI, compared with the authors' results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close
from helpers.pictures import picture
from ovis_core.pixels import to_tensor

PROMPT = "add a hat to this cat."


@pytest.fixture(scope="module")
def edited(loaded: tuple[Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    from ovis_core.native.conditions import edit

    return edit(loaded[1], loaded[2], to_tensor(picture(256, 192))[None], PROMPT)


@contextmanager
def counted(model: Any, clip: Any, vae: Any) -> Iterator[Counter[str]]:
    """Counts how often each network runs."""
    calls: Counter[str] = Counter()
    text = clip.cond_stage_model
    networks = {
        "language model": text.llm.blocks[0],
        "vision": text.visual_tokenizer,
        "refiner": model.model.diffusion_model.txt_in,
        "decoder": model.model.diffusion_model.final_layer,
        "vae encoder": vae.first_stage_model.encoder,
    }
    hooks = [
        network.register_forward_hook(lambda *_, name=name: calls.update([name])) for name, network in networks.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def sample(guider: Any, noise: Tensor, steps: int) -> Tensor:
    """Final latent in model space, from noise given as such."""
    import comfy.samplers

    from ovis_core.native.sigmas import sigmas_for

    empty = torch.zeros_like(noise)
    sigmas = sigmas_for(guider.model_patcher, empty, steps, 1.0)
    latent = guider.sample(noise, empty, comfy.samplers.sampler_object("euler"), sigmas)
    return guider.model_patcher.model.process_latent_in(latent)


def guider(model: Any, edited: tuple[Any, ...], txt_cfg: float, img_cfg: float, *interval: float) -> Any:
    from ovis_core.native.guider import OvisGuider

    positive, image_only, negative, _ = edited
    return OvisGuider(model, positive, negative, txt_cfg, image_only, img_cfg, *interval)


def test_conditions(loaded: tuple[Any, ...], edited: tuple[Any, ...], tensors: dict[str, Tensor]) -> None:
    positive, image_only, negative, latent = edited
    close(positive[0][0], tensors["edit/cond"])
    close(image_only[0][0], tensors["edit/cond_no_txt"])
    close(negative[0][0], tensors["edit/cond_no_both"])
    model = loaded[0].model
    close(model.process_latent_in(latent["samples"]), tensors["edit/ref_latent_mode"])
    for condition in (positive, image_only):
        assert condition[0][1]["reference_latents"][0] is latent["samples"]
    assert "reference_latents" not in negative[0][1]


def test_source_that_is_resized(loaded: tuple[Any, ...], golden: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    from ovis_core.native.conditions import edit
    from ovis_core.pixels import resize

    width, height = golden["resized_target_wh"]
    source = picture(300, 217, 2)
    assert list(source.size) == golden["resized_source_wh"]
    pixels = to_tensor(resize(source, height, width)).permute(2, 0, 1)[None] * 2 - 1
    close(pixels[..., :16, :16], tensors["resized/vae_pixels_head"])
    close(pixels[..., -16:, -16:], tensors["resized/vae_pixels_tail"])
    positive, _, _, latent = edit(loaded[1], loaded[2], to_tensor(source)[None], PROMPT)
    assert latent["samples"].shape[-2:] == (height // 8, width // 8)
    close(positive[0][0], tensors["resized/cond"])
    close(loaded[0].model.process_latent_in(latent["samples"]), tensors["resized/ref_latent_mode"])


def test_reference_pixels(tensors: dict[str, Tensor]) -> None:
    pixels = to_tensor(picture(256, 192)).permute(2, 0, 1)[None] * 2 - 1
    close(pixels[..., :8, :8], tensors["edit/vae_pixels_head"])


def test_float_pixels_are_rounded_to_8_bits() -> None:
    from ovis_core.pixels import to_pil

    just_under = torch.full((1, 1, 3), 99.6 / 255)
    assert to_pil(just_under).getpixel((0, 0)) == (100, 100, 100)
    assert to_pil(torch.full((1, 1, 3), 99.4 / 255)).getpixel((0, 0)) == (99, 99, 99)


def test_final_latent_and_image(loaded: tuple[Any, ...], edited: tuple[Any, ...], tensors: dict[str, Tensor]) -> None:
    latent = sample(guider(loaded[0], edited, 6.0, 1.5), tensors["edit/noise"], 4)
    close(latent, tensors["edit/final_latent"], 1e-4)
    image = loaded[2].decode(loaded[0].model.process_latent_out(latent))
    close(image, tensors["edit/image"], 1e-4)


@torch.inference_mode()  # as ComfyUI runs nodes
@pytest.mark.parametrize(
    ("txt_cfg", "img_cfg", "branches"), [(6.0, 1.5, 3), (6.0, 1.0, 2), (3.0, 3.0, 2), (1.0, 1.0, 1), (1.0, 3.0, 3)]
)
def test_branches_of_weight_zero_are_not_run(
    loaded: tuple[Any, ...],
    edited: tuple[Any, ...],
    tensors: dict[str, Tensor],
    txt_cfg: float,
    img_cfg: float,
    branches: int,
) -> None:
    model, clip, vae = loaded
    noise = tensors["edit/noise"]
    with counted(model, clip, vae) as calls:
        lean = sample(guider(model, edited, txt_cfg, img_cfg), noise, 3)
    assert calls["decoder"] == 3 * branches
    assert calls["refiner"] == 3
    # The same result if every branch runs, which this option of ComfyUI does.
    whole = model.clone()
    whole.model_options["disable_cfg1_optimization"] = True
    with counted(model, clip, vae) as calls:
        full = sample(guider(whole, edited, txt_cfg, img_cfg), noise, 3)
    assert calls["decoder"] == 9
    close(lean, full, 1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("start", "end", "guided"), [(0.0, 1.0, 10), (0.0, 0.5, 5), (0.2, 0.8, 6), (0.3, 1.0, 7), (0.0, 0.01, 1)]
)
def test_guidance_in_an_interval(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], tensors: dict[str, Tensor], start: float, end: float, guided: int
) -> None:
    import comfy.samplers

    from ovis_core.native.sigmas import sigmas_for

    model, steps, noise = loaded[0], 10, tensors["edit/noise"]
    with counted(*loaded) as calls:
        out = sample(guider(model, edited, 6.0, 1.5, start, end), noise, steps)
    assert calls["decoder"] == 3 * guided + (steps - guided)

    # The same as three runs one after the other, of which the middle one alone is guided.
    first = round(start * steps)
    latent = torch.zeros_like(noise)
    sigmas = sigmas_for(model, latent, steps, 1.0)
    bounds = (0, first, first + guided, steps)
    for i, scales in enumerate([(1.0, 1.0), (6.0, 1.5), (1.0, 1.0)]):
        if bounds[i] < bounds[i + 1]:
            part, euler = sigmas[bounds[i] : bounds[i + 1] + 1], comfy.samplers.sampler_object("euler")
            latent = guider(model, edited, *scales).sample(noise, latent, euler, part)
            noise = torch.zeros_like(noise)
    close(out, model.model.process_latent_in(latent), 1e-4)


def test_dual_cfg_guider_gives_the_same_result(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], tensors: dict[str, Tensor]
) -> None:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    positive, image_only, negative, _ = edited
    core = Guider_DualCFG(loaded[0])
    core.set_conds(positive, image_only, negative)
    core.set_cfg(6.0, 1.5)
    noise = tensors["edit/noise"]
    assert torch.equal(sample(core, noise, 4), sample(guider(loaded[0], edited, 6.0, 1.5), noise, 4))


def test_each_network_runs_only_as_often_as_needed(loaded: tuple[Any, ...]) -> None:
    from ovis_core.native.conditions import edit, text_to_image

    image = to_tensor(picture(256, 192))
    with counted(*loaded) as calls:
        edit(loaded[1], loaded[2], image[None], PROMPT)
    # The source and the blank are encoded once each; three prompts; one encoding by the VAE.
    assert calls == {"vision": 2, "language model": 3, "vae encoder": 1}
    with counted(*loaded) as calls:
        text_to_image(loaded[1], "a cute cat", "", 128, 96)
    assert calls == {"vision": 1, "language model": 2}


def test_batch_equals_its_single_edits(loaded: tuple[Any, ...], tensors: dict[str, Tensor]) -> None:
    from ovis_core.native.conditions import edit

    model, clip, vae = loaded
    images = torch.stack([to_tensor(picture(256, 192, k)) for k in range(3)])
    both = edit(clip, vae, images, PROMPT)
    assert both[0][0][0].shape[0] == both[3]["samples"].shape[0] == 3
    noise = tensors["edit/noise"]
    batch = sample(guider(model, both, 6.0, 1.5), noise.repeat(3, 1, 1, 1), 2)
    for i in range(3):
        one = sample(guider(model, edit(clip, vae, images[i : i + 1], PROMPT), 6.0, 1.5), noise, 2)
        close(batch[i : i + 1], one)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_negative_prompt_replaces_the_model_s_own(loaded: tuple[Any, ...], edited: tuple[Any, ...]) -> None:
    from ovis_core.native.conditions import edit
    from ovis_core.text.prompts import UNCONDITIONAL

    image = to_tensor(picture(256, 192))[None]
    same = edit(loaded[1], loaded[2], image, PROMPT, UNCONDITIONAL)[2]
    assert torch.equal(same[0][0], edited[2][0][0])
    other = edit(loaded[1], loaded[2], image, PROMPT, "a blurred, dark photograph")[2]
    assert other[0][0].shape != edited[2][0][0].shape


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_is_expanded_and_alpha_is_dropped(loaded: tuple[Any, ...], channels: int) -> None:
    from ovis_core.native.conditions import edit

    rgb = to_tensor(picture(64, 64))
    image = rgb[..., :1] if channels == 1 else torch.cat((rgb, torch.zeros(64, 64, 1)), dim=-1)
    plain = rgb[..., :1].expand(-1, -1, 3) if channels == 1 else rgb
    given, expected = (edit(loaded[1], loaded[2], x[None], PROMPT)[3]["samples"] for x in (image, plain))
    assert torch.equal(given, expected)
