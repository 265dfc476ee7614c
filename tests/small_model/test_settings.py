"""Settings and core's nodes: images are correct, not only unchanged.

With the small model that comes with the pack, in whose images `flat_shapes.recognise` finds the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flat_shapes
import pytest
import torch
from cases import first_cases, picture_verdict
from flat_shapes import Scene, Shape
from torch import Tensor

from ovis_core.weights import built_in
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.conversion import write_one
from ovis_core.weights.precision import PRECISIONS, QUANTIZED_PRECISIONS

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

CASES = 6  # pictures of each setting
FEW = 10  # steps, for what does not depend on their number
ENOUGH = 0.8  # share of them that must be right; of 200 it is at least 0.95


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_in.unpack(tmp_path_factory.mktemp("unpacked"))


@pytest.fixture(scope="module")
def pipeline(comfyui: Path, file: Path) -> Any:
    from sampling import SmallModelPipeline

    return SmallModelPipeline(file, "default")


def share_right(pipeline: Any, **changes: Any) -> tuple[float, float]:
    """Share of pictures that are right, and the decoder's passes for each."""
    from sampling import Setting

    setting, before = Setting("", "", **changes), pipeline.passes
    cases = enumerate(first_cases("paint", CASES))
    hits = [picture_verdict(case, pipeline.make_image(setting, case, seed))[0] for seed, case in cases]
    return sum(hits) / CASES, (pipeline.passes - before) / CASES


def scene(kind: str, colour: str, background: str) -> Scene:
    return Scene(background, (Shape(kind, colour, "", "", 64, 64, 30),))


def prompt(wanted: Scene) -> str:
    return f"a {wanted.shape.colour} {wanted.shape.kind} on a {wanted.background} background"


RED, GREEN = scene("circle", "red", "white"), scene("square", "green", "yellow")


def conditions(pipeline: Any, *prompts: str) -> Iterator[list[list[Any]]]:
    from ovis_core.native.conditions import text_to_image

    for text in prompts:
        yield text_to_image(pipeline.clip, text, "", 128, 128)[0]


def empty(count: int = 1) -> dict[str, Tensor]:
    return {"samples": torch.zeros(count, 4, 16, 16)}


def sampled(pipeline: Any, positive: Any, negative: Any, latent: dict[str, Any], **changes: Any) -> Tensor:
    """The latents of core's KSampler."""
    from nodes import common_ksampler

    settings = {"seed": 1, "steps": 20, "cfg": 5.0, "sampler_name": "euler", "scheduler": "simple", **changes}
    model = settings.pop("model", pipeline.model)
    (out,) = common_ksampler(model, positive=positive, negative=negative, latent=latent, **settings)
    return out["samples"]


def shown(pipeline: Any, latent: Tensor) -> list[Scene]:
    return [flat_shapes.recognise(image.permute(2, 0, 1).float()) for image in pipeline.vae.decode(latent)]


# ---- guidance, precision, caches, samplers


def test_guidance_takes_two_passes_per_step(pipeline: Any) -> None:
    right, passes = share_right(pipeline)
    assert right >= ENOUGH
    assert passes == 40
    _, passes_without = share_right(pipeline, guidance={"txt_cfg": 1.0})
    assert passes_without == 20


def test_images_are_correct_if_guidance_ends_early(pipeline: Any) -> None:
    right, passes = share_right(pipeline, guidance={"cfg_end": 0.8})
    assert right >= ENOUGH
    assert passes == 36


@pytest.mark.parametrize("weight_dtype", [name for name in PRECISIONS if name not in ("default", "fp32")])
def test_images_are_correct_in_other_precisions(comfyui: Path, file: Path, weight_dtype: str) -> None:
    from sampling import SmallModelPipeline

    assert share_right(SmallModelPipeline(file, weight_dtype), steps=FEW)[0] >= ENOUGH


def test_images_are_correct_from_an_fp8_scaled_file(comfyui: Path, file: Path, tmp_path: Path) -> None:
    from sampling import SmallModelPipeline

    smaller = tmp_path / "fp8_scaled.safetensors"
    write_one(open_model(file), smaller, QUANTIZED_PRECISIONS["fp8_scaled"])
    assert share_right(SmallModelPipeline(smaller, "default"), steps=FEW)[0] >= ENOUGH


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_images_are_correct_with_caches(pipeline: Any, name: str) -> None:
    """In float32 EasyCache once left noise: it changes the latent that it is given."""
    from comfy_extras import nodes_easycache

    node = getattr(nodes_easycache, f"{name}Node")
    right, passes = share_right(pipeline, patch=lambda model: node.execute(model, 0.2, 0.15, 0.95, False)[0])
    assert right >= ENOUGH
    assert passes < 0.7 * 40


@pytest.mark.parametrize(
    ("sampler", "scheduler", "steps"),
    [
        ("euler", "simple", FEW),
        ("dpmpp_2m", "beta", FEW),
        ("heun", "ovis_u1", FEW),
        ("uni_pc", "simple", built_in.STEPS),
        ("euler_ancestral", "beta", FEW),
    ],
)
def test_images_are_correct_with_core_samplers(pipeline: Any, sampler: str, scheduler: str, steps: int) -> None:
    assert share_right(pipeline, sampler=sampler, scheduler=scheduler, steps=steps)[0] >= ENOUGH


# ---- what core's nodes do with conditions and latents


@torch.inference_mode()
def test_a_negative_prompt_is_avoided(pipeline: Any) -> None:
    red, green = conditions(pipeline, prompt(RED), prompt(GREEN))
    (first,) = shown(pipeline, sampled(pipeline, red, green, empty()))
    (second,) = shown(pipeline, sampled(pipeline, green, red, empty()))
    assert flat_shapes.same(first, RED)
    assert flat_shapes.same(second, GREEN)


@torch.inference_mode()
def test_every_image_of_a_batch_is_correct(pipeline: Any) -> None:
    red, none = conditions(pipeline, prompt(RED), "")
    found = shown(pipeline, sampled(pipeline, red, none, empty(4)))
    assert [flat_shapes.same(one, RED) for one in found] == [True] * 4
    assert len({round(one.shape.x) for one in found}) > 1


@torch.inference_mode()
def test_sampling_in_two_parts_equals_one_run(pipeline: Any) -> None:
    red, none = conditions(pipeline, prompt(RED), "")
    whole = sampled(pipeline, red, none, empty())
    half = sampled(pipeline, red, none, empty(), last_step=10, force_full_denoise=False)
    rest = sampled(pipeline, red, none, {"samples": half}, start_step=10, disable_noise=True)
    assert torch.allclose(rest, whole, atol=1e-4)
    assert flat_shapes.same(shown(pipeline, whole)[0], RED)


@torch.inference_mode()
def test_lower_denoise_keeps_more_of_the_image(pipeline: Any) -> None:
    """At 0.2 the picture stays; at 0.6 it becomes what the prompt says, in its place."""
    before = Scene("white", (Shape("circle", "red", "", "on the left", 38, 64, 30),))
    after = before.change(colour="blue")
    latent = pipeline.vae.encode(flat_shapes.draw([before]).permute(0, 2, 3, 1))
    blue, none = conditions(pipeline, "a blue circle on the left on a white background", "")
    for denoise, wanted in ((0.2, before), (0.6, after)):
        (found,) = shown(pipeline, sampled(pipeline, blue, none, {"samples": latent}, denoise=denoise))
        assert flat_shapes.same(found, wanted)
        assert flat_shapes.kept(found, wanted)


@torch.inference_mode()
def test_second_pass_corrects_an_image_of_half_the_size(pipeline: Any) -> None:
    """At 64 x 64, for which the model was not trained, few are right."""
    from nodes import LatentUpscale

    right = {0.1: 0, 0.6: 0}
    for seed, case in enumerate(first_cases("paint", CASES)):
        own, none = conditions(pipeline, case.prompt, "")
        small = sampled(pipeline, own, none, {"samples": torch.zeros(1, 4, 8, 8)}, seed=seed)
        (large,) = LatentUpscale().upscale({"samples": small}, "bilinear", 128, 128, "disabled")
        for denoise in right:
            (found,) = shown(pipeline, sampled(pipeline, own, none, large, seed=seed, denoise=denoise))
            right[denoise] += flat_shapes.same(found, case.scene)
    assert right[0.6] >= ENOUGH * CASES
    assert right[0.1] < right[0.6] - 2


@torch.inference_mode()
def test_masked_edit_keeps_the_image_outside_the_mask(pipeline: Any) -> None:
    before = Scene("yellow", (Shape("square", "blue", "small", "", 40, 64, 20),))
    picture = flat_shapes.draw([before])
    latent = pipeline.vae.encode(picture.permute(0, 2, 3, 1))
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:96, 8:72] = 1
    wanted = before.change(colour="red")
    red, none = conditions(pipeline, "a small red square on the left on a yellow background", "")
    out = sampled(pipeline, red, none, {"samples": latent, "noise_mask": mask})
    (found,) = shown(pipeline, out)
    assert flat_shapes.same(found, wanted)
    image = pipeline.vae.decode(out)[0].permute(2, 0, 1).float()
    outside = mask[0] == 0
    outside[24:104, :80] = False
    assert (image - picture[0])[:, outside].abs().mean() < 0.05


@torch.inference_mode()
def test_two_prompts_with_areas(pipeline: Any) -> None:
    from nodes import ConditioningCombine, ConditioningSetArea

    left, right, none = conditions(
        pipeline, "a small red circle on a white background", "a small blue square on a white background", ""
    )
    (left,) = ConditioningSetArea().append(left, 64, 128, 0, 0, 1.0)
    (right,) = ConditioningSetArea().append(right, 64, 128, 64, 0, 1.0)
    (both,) = ConditioningCombine().combine(left, right)
    (found,) = shown(pipeline, sampled(pipeline, both, none, empty()))
    assert found.background == "white"
    places = {shape.colour: shape.x for shape in found.shapes}
    assert places["red"] < 64 < places["blue"]


# ---- edits


@torch.inference_mode()
def test_an_edit_follows_the_text_and_keeps_the_image(pipeline: Any) -> None:
    """With the authors' scales shape and place stay; with no weight on the text the edit is not made."""
    from ovis_core.native.conditions import edit
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sample

    made = {0.0: 0, 6.0: 0}
    for number, colour in enumerate(("red", "blue", "purple", "black")):
        before = Scene("yellow", (Shape("square", "green", "small", "at the bottom", 64 + 4 * number, 92, 20),))
        picture = flat_shapes.draw([before]).permute(0, 2, 3, 1)
        positive, image_only, negative, latent = edit(pipeline.clip, pipeline.vae, picture, f"make the square {colour}")
        for txt_cfg in made:
            guider = OvisGuider(pipeline.model, positive, negative, txt_cfg, image_only, 1.5)
            out = sample(guider, {"samples": latent["samples"]}, number, "euler", "ovis_u1", 20, 1.0)
            (found,) = shown(pipeline, out["samples"])
            meant = before.change(colour=colour)
            made[txt_cfg] += flat_shapes.same(found, meant) and flat_shapes.kept(found, meant)
    assert made[6.0] >= 3
    assert made[0.0] <= 1


# ---- merging


@torch.inference_mode()
def test_merging_with_itself_and_removing_the_single_blocks(pipeline: Any) -> None:
    """Halves of two equal models are the model; without its single blocks it draws nothing of the prompt."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    red, none = conditions(pipeline, prompt(RED), "")
    (merged,) = ModelMergeSimple().merge(pipeline.model, pipeline.model, 0.5)
    whole = sampled(pipeline, red, none, empty())
    assert torch.allclose(sampled(pipeline, red, none, empty(), model=merged), whole, atol=1e-3)
    spoiled = pipeline.model.clone()
    spoiled.add_patches(pipeline.model.get_key_patches("diffusion_model.single_blocks."), -1.0, 1.0)
    assert not flat_shapes.same(shown(pipeline, sampled(pipeline, red, none, empty(), model=spoiled))[0], RED)
    assert flat_shapes.same(shown(pipeline, whole)[0], RED)
