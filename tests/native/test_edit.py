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

    from ovis_core.native.sampling import sigmas_for

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

    from ovis_core.native.sampling import sigmas_for

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


@pytest.fixture(scope="module")
def two(loaded: tuple[Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    from ovis_core.native.conditions import edit

    first, second = to_tensor(picture(256, 192))[None], to_tensor(picture(300, 217, 2))[None]
    return edit(loaded[1], loaded[2], first, PROMPT, further=[second])


def test_no_further_pictures_give_the_same_bits(loaded: tuple[Any, ...], edited: tuple[Any, ...]) -> None:
    from ovis_core.native.conditions import edit

    again = edit(loaded[1], loaded[2], to_tensor(picture(256, 192))[None], PROMPT, further=[])
    for before, now in zip(edited[:3], again[:3], strict=True):
        assert torch.equal(before[0][0], now[0][0])
    assert torch.equal(edited[3]["samples"], again[3]["samples"])
    assert [len(cond[0][1].get("reference_latents", ())) for cond in again[:3]] == [1, 1, 0]


def test_conditions_of_two_pictures(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], two: tuple[Any, ...], golden: dict[str, Any]
) -> None:
    """Both pictures are in the prompt, numbered, and among the references, each at its own size."""
    from ovis_core.native.edit_latent import SOURCE
    from ovis_core.pixels import condition_input, resize

    _, clip, vae = loaded
    text, tokenizer = clip.cond_stage_model, clip.tokenizer.tokenizer
    width, height = golden["resized_target_wh"]
    sources = [picture(256, 192), resize(picture(300, 217, 2), height, width)]
    seen = [condition_input(source) for source in sources]
    for condition, words in ((two[0], PROMPT), (two[1], "Generate an image.")):
        start = tokenizer.encode(["user\nImage 1: "]), tokenizer.encode(["\nImage 2: "])
        start_of_turn, end_of_turn = 151644, 151645
        tokens = [start_of_turn, *start[0], seen[0], *start[1], seen[1], *tokenizer.encode([f"\n{words}"])]
        tokens += [end_of_turn, *tokenizer.encode(["\n"])]
        expected = text.condition(tokens, torch.device("cpu"), torch.float32)
        close(condition[0][0], expected)
        latents = condition[0][1]["reference_latents"]
        assert len(latents) == 2
        for latent, source in zip(latents, sources, strict=True):
            assert torch.equal(latent, vae.encode(to_tensor(source)[None]))
    # Negative and the latent are those of the first picture alone.
    assert torch.equal(two[2][0][0], edited[2][0][0])
    assert "reference_latents" not in two[2][0][1]
    assert torch.equal(two[3]["samples"], edited[3]["samples"])
    assert (two[3][SOURCE].height, two[3][SOURCE].width) == (192, 256)


def test_each_network_runs_once_for_each_picture(loaded: tuple[Any, ...]) -> None:
    from ovis_core.native.conditions import edit

    batch = torch.stack([to_tensor(picture(256, 192, k)) for k in range(2)])
    with counted(*loaded) as calls:
        edit(loaded[1], loaded[2], batch, PROMPT, further=[batch[:1, :100], batch])
    # Two images, one further picture for both, one for each, and the blank.
    assert calls == {"vision": 6, "language model": 5, "vae encoder": 3}


@torch.inference_mode()
def test_edit_with_two_pictures_equals_the_formula(
    loaded: tuple[Any, ...], two: tuple[Any, ...], tensors: dict[str, Tensor]
) -> None:
    """One Euler step, computed from the decoder's velocities."""
    model, noise = loaded[0], tensors["edit/noise"]
    core, network = model.model, model.model.diffusion_model

    def velocity(condition: Any) -> Tensor:
        text, y = network.refine(condition[0][0])
        references = [core.process_latent_in(latent) for latent in condition[0][1].get("reference_latents", ())]
        return network(noise, torch.ones(1), text, y, references)

    positive, image_only, negative = map(velocity, two[:3])
    expected = noise - (negative + 1.5 * (image_only - negative) + 6.0 * (positive - image_only))
    close(sample(guider(model, two, 6.0, 1.5), noise, 1), expected)
    # The second picture takes part, and the order of the pictures counts.
    other = [two[0][0][0], {"reference_latents": two[0][0][1]["reference_latents"][::-1]}]
    assert (velocity([other]) - positive).abs().max() > 1e-4


def test_batch_with_further_pictures_equals_its_single_edits(
    loaded: tuple[Any, ...], tensors: dict[str, Tensor]
) -> None:
    from ovis_core.native.conditions import edit

    model, clip, vae = loaded
    images = torch.stack([to_tensor(picture(256, 192, k)) for k in range(2)])
    shared, own = to_tensor(picture(80, 96, 5))[None], torch.stack([to_tensor(picture(64, 64, k)) for k in (7, 8)])
    both = edit(clip, vae, images, PROMPT, further=[shared, own])
    noise = tensors["edit/noise"]
    batch = sample(guider(model, both, 6.0, 1.5), noise.repeat(2, 1, 1, 1), 2)
    for i in range(2):
        one = edit(clip, vae, images[i : i + 1], PROMPT, further=[shared, own[i : i + 1]])
        close(batch[i : i + 1], sample(guider(model, one, 6.0, 1.5), noise, 2))
    swapped = edit(clip, vae, images, PROMPT, further=[shared, own.flip(0)])
    assert (sample(guider(model, swapped, 6.0, 1.5), noise.repeat(2, 1, 1, 1), 2) - batch).abs().max() > 1e-3


def test_refined_conditions_of_two_pictures_give_the_same_edit(
    loaded: tuple[Any, ...], two: tuple[Any, ...], tensors: dict[str, Tensor]
) -> None:
    from ovis_core.native.refining import refine

    model, noise = loaded[0], tensors["edit/noise"]
    refined = (*(refine(model, condition) for condition in two[:3]), two[3])
    assert [len(cond[0][1].get("reference_latents", ())) for cond in refined[:3]] == [2, 2, 0]
    close(sample(guider(model, refined, 6.0, 1.5), noise, 2), sample(guider(model, two, 6.0, 1.5), noise, 2))


def test_core_reference_latent_adds_a_picture_to_the_decoder(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], two: tuple[Any, ...], tensors: dict[str, Tensor]
) -> None:
    """A latent of ReferenceLatent is the next reference, after those of the edit."""
    from comfy_extras.nodes_edit_model import ReferenceLatent

    model, noise = loaded[0], tensors["edit/noise"]
    latents = two[0][0][1]["reference_latents"]
    added = [ReferenceLatent.execute(cond, {"samples": latents[1]})[0] for cond in edited[:2]]
    given = [[[cond[0][0], {"reference_latents": latents}]] for cond in edited[:2]]
    one, other = (
        sample(guider(model, (*conditions, edited[2], edited[3]), 6.0, 1.5), noise, 2) for conditions in (added, given)
    )
    assert torch.equal(one, other)
    assert (one - sample(guider(model, edited, 6.0, 1.5), noise, 2)).abs().max() > 1e-3
