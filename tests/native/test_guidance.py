"""Patches on guidance, as core's nodes set them, act on an edit like on text to image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close
from helpers.pictures import picture
from ovis_core.pixels import to_tensor

Args = dict[str, Any]
SETTERS = {
    "pre": "set_model_sampler_pre_cfg_function",
    "cfg": "set_model_sampler_cfg_function",
    "post": "set_model_sampler_post_cfg_function",
    "calc": "set_model_sampler_calc_cond_batch_function",
}


def plain_pre(args: Args) -> list[Tensor]:
    return args["conds_out"]


def plain_cfg(args: Args) -> Tensor:
    return args["uncond"] + (args["cond"] - args["uncond"]) * args["cond_scale"]


def plain_post(args: Args) -> Tensor:
    return args["denoised"]


def plain_calc(args: Args) -> list[Tensor]:
    import comfy.samplers

    return comfy.samplers.calc_cond_batch(
        args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
    )


PLAIN: dict[str, Callable[[Args], Any]] = {"pre": plain_pre, "cfg": plain_cfg, "post": plain_post, "calc": plain_calc}


@pytest.fixture(scope="module")
def edited(loaded: tuple[Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    from ovis_core.native.conditions import edit

    return edit(loaded[1], loaded[2], to_tensor(picture(128, 96))[None], "add a hat to this cat.", "a dog")


def sample(model: Any, conds: tuple[Any, ...], txt_cfg: float, img_cfg: float, sampler: str = "euler") -> Tensor:
    import comfy.samplers

    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sigmas_for

    positive, image_only, negative, latent = conds
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(5))
    guider = OvisGuider(model, positive, negative, txt_cfg, image_only, img_cfg)
    sigmas = sigmas_for(model, noise, 3, 1.0)
    return guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas, seed=5)


def test_image_only_requires_its_scale(loaded: tuple[Any, Any, Any], edited: tuple[Any, Any, Any, Any]) -> None:
    from ovis_core.native.guider import OvisGuider

    positive, image_only, negative, _ = edited
    with pytest.raises(TypeError, match="img_cfg"):
        OvisGuider(loaded[0], positive, negative, 6.0, image_only)


def patched(model: Any, kind: str, function: Callable[[Args], Any]) -> Any:
    clone = model.clone()
    getattr(clone, SETTERS[kind])(function)
    return clone


SCALES = [(6.0, 1.5), (6.0, 0.7), (2.0, 5.0), (1.0, 1.5), (0.0, 1.5), (0.4, 1.5), (1.0, 0.0), (3.0, 0.0), (1.0005, 2.0)]


@torch.inference_mode()
@pytest.mark.parametrize(("txt_cfg", "img_cfg"), SCALES)
def test_a_guidance_patch_without_effect_leaves_the_result_unchanged(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], txt_cfg: float, img_cfg: float
) -> None:
    plain = sample(loaded[0], edited, txt_cfg, img_cfg)
    for kind, function in PLAIN.items():
        close(sample(patched(loaded[0], kind, function), edited, txt_cfg, img_cfg), plain, 1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("kind", list(PLAIN))
@pytest.mark.parametrize(("txt_cfg", "img_cfg"), [(6.0, 1.5), (1.0, 1.5), (6.0, 1.0), (0.0, 1.5)])
def test_a_guidance_patch_changes_the_result(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], kind: str, txt_cfg: float, img_cfg: float
) -> None:
    seen = []

    def function(args: Args) -> Any:
        seen.append(args)
        out = PLAIN[kind](args)
        return [x * 1.1 for x in out] if isinstance(out, list) else out * 1.1

    changed = sample(patched(loaded[0], kind, function), edited, txt_cfg, img_cfg)
    plain = sample(loaded[0], edited, txt_cfg, img_cfg)
    assert float((changed - plain).norm() / plain.norm()) > 1e-3
    assert len(seen) == 3  # once a step
    for args in seen:
        if kind in ("pre", "calc"):
            assert len(args["conds"]) == 2
        if kind == "pre":
            assert len(args["conds_out"]) == 2


@torch.inference_mode()
def test_patches_get_cond_and_uncond_of_the_guided_result(loaded: tuple[Any, ...], edited: tuple[Any, ...]) -> None:
    """cond is the positive's; denoised is uncond + scale (cond - uncond); each can be computed again."""
    import comfy.samplers

    def again(args: Args, conds: Any) -> Tensor:
        options = {k: v for k, v in args["model_options"].items() if k != "sampler_post_cfg_function"}
        return comfy.samplers.calc_cond_batch(args["model"], [conds], args["input"], args["sigma"], options)[0]

    def check(args: Args) -> Tensor:
        cond, uncond = args["cond_denoised"], args["uncond_denoised"]
        close(uncond + args["cond_scale"] * (cond - uncond), args["denoised"], 1e-6)
        assert args["cond_scale"] == 6.0
        close(again(args, args["cond"]), cond, 1e-6)
        close(again(args, args["uncond"]), uncond, 1e-6)
        (entry,) = args["cond"]
        assert torch.equal(entry["cross_attn"], edited[0][0][0])
        return args["denoised"]

    sample(patched(loaded[0], "post", check), edited, 6.0, 1.5)


def halves(conditioning: Any, other: Any, **more: float) -> Any:
    """Two conditions, each on a half of the image."""
    import node_helpers

    mask = torch.zeros(1, 96, 128)
    mask[..., :64] = 1.0
    return node_helpers.conditioning_set_values(
        conditioning, {"mask": mask, "set_area_to_bounds": False, "mask_strength": 0.7}
    ) + node_helpers.conditioning_set_values(
        other, {"mask": 1.0 - mask, "set_area_to_bounds": True, "mask_strength": 1.0}
    )


@torch.inference_mode()
@pytest.mark.parametrize("how", ["two", "halves", "area", "range", "strength", "default"])
def test_areas_masks_and_ranges(loaded: tuple[Any, ...], edited: tuple[Any, ...], how: str) -> None:
    """Patched and plain guidance agree if negative or image_only have several entries."""
    import node_helpers

    positive, image_only, negative, latent = edited
    other = [[negative[0][0].roll(1, dims=1) * 1.5, dict(negative[0][1])]]
    set_values = node_helpers.conditioning_set_values
    changed = {
        "two": (image_only, negative + other),
        "halves": (image_only, halves(negative, other)),
        "area": (image_only, negative + set_values(other, {"area": (6, 8, 2, 4), "strength": 2.0})),
        "range": (image_only, set_values(negative, {"end_percent": 0.5}) + set_values(other, {"start_percent": 0.5})),
        "strength": (set_values(image_only, {"strength": 0.3}), set_values(negative, {"strength": 3.0})),
        "default": (
            image_only,
            set_values(negative, {"area": (6, 8, 2, 4), "strength": 0.4}) + set_values(other, {"default": True}),
        ),
    }[how]
    conds = (positive, *changed, latent)
    plain = sample(loaded[0], conds, 6.0, 1.5)
    assert how == "strength" or float((plain - sample(loaded[0], edited, 6.0, 1.5)).norm() / plain.norm()) > 1e-4
    for kind, function in PLAIN.items():
        close(sample(patched(loaded[0], kind, function), conds, 6.0, 1.5), plain, 1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("sampler", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
@pytest.mark.parametrize("scales", [(6.0, 1.0), (6.0, 6.0)])
def test_samplers_that_use_the_unconditional_prediction(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], sampler: str, scales: tuple[float, float]
) -> None:
    """With scales at which an edit uses one pair of conditions, they give the same result as with that pair."""
    import comfy.samplers

    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sigmas_for

    positive, image_only, negative, latent = edited
    uncond = image_only if scales[1] == 1.0 else negative
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(5))
    pair = OvisGuider(loaded[0], positive, uncond, 6.0)
    sigmas = sigmas_for(loaded[0], noise, 3, 1.0)
    expected = pair.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas, seed=5)
    close(sample(loaded[0], edited, *scales, sampler), expected, 1e-5)


@pytest.fixture(scope="module")
def drawn(loaded: tuple[Any, ...]) -> tuple[Any, Any]:
    """Positive and negative of text to image, of different length."""
    from ovis_core.native.conditions import text_to_image

    positive, negative = text_to_image(loaded[1], "a red fox in the deep snow of a long winter", "a dog", 128, 96)
    assert positive[0][0].shape != negative[0][0].shape
    return positive, negative


def draw(model: Any, conds: tuple[Any, Any], cfg: float) -> Tensor:
    """As core's KSampler does it."""
    import comfy.samplers

    noise = torch.randn(1, 4, 12, 16, generator=torch.Generator().manual_seed(5))
    sampler = comfy.samplers.KSampler(
        model, 3, torch.device("cpu"), "euler", "simple", model_options=model.model_options
    )
    return sampler.sample(noise, *conds, cfg, latent_image=torch.zeros_like(noise), seed=5)


def nag(model: Any, **settings: float) -> Any:
    nodes_nag = pytest.importorskip("comfy_extras.nodes_nag", reason="this ComfyUI has no NAGuidance")
    return nodes_nag.NAGuidance.execute(model, **{"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5, **settings})[0]


@torch.inference_mode()
def test_attention_output_patches_get_conditions_of_different_length_in_one_batch(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], drawn: tuple[Any, Any]
) -> None:
    batches = []

    def record(out: Tensor, options: Args) -> Tensor:
        batches.append(tuple(options["cond_or_uncond"]))
        return out

    model = loaded[0].clone()
    model.set_model_attn1_output_patch(record)
    close(draw(model, drawn, 6.0), draw(loaded[0], drawn, 6.0), 1e-5)
    assert {frozenset(batch) for batch in batches} == {frozenset((0, 1))}
    batches.clear()
    close(sample(model, edited, 6.0, 1.5), sample(loaded[0], edited, 6.0, 1.5), 1e-5)
    assert {frozenset(batch) for batch in batches} == {frozenset((0, 1)), frozenset((2,))}


@torch.inference_mode()
def test_naguidance_changes_the_result(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], drawn: tuple[Any, Any]
) -> None:
    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).norm() / b.norm())

    off = nag(loaded[0], nag_alpha=0.0)
    for run in (lambda model: draw(model, drawn, 1.0), lambda model: sample(model, edited, 1.0, 1.0)):
        plain = run(loaded[0])
        close(run(off), plain, 1e-5)
        assert apart(run(nag(loaded[0])), plain) > 1e-3
    # A negative as long as the positive needs no padding.
    alike = (drawn[0], [[drawn[0][0][0] * 0.5, dict(drawn[1][0][1])]])
    assert apart(draw(nag(loaded[0]), alike, 1.0), draw(loaded[0], alike, 1.0)) > 1e-3


@torch.inference_mode()
def test_naguidance_raises_an_error_if_it_would_have_no_effect(
    loaded: tuple[Any, ...], edited: tuple[Any, ...]
) -> None:
    positive, _, negative, _ = edited
    patched = nag(loaded[0])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^model: NAGuidance needs positive and negative in one batch"):
            draw(patched, (positive, negative), 3.0)
    # Other patches may run one condition alone.
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    both = SkipLayerGuidanceDiT.execute(patched, 3.0, 0.0, 1.0, "1", "1")[0]
    assert sample(both, edited, 6.0, 1.5).isfinite().all()


@torch.inference_mode()
@pytest.mark.parametrize("which", ["positive", "negative"])
@pytest.mark.parametrize("part", [{"start_percent": 0.5}, {"end_percent": 0.5}])
def test_naguidance_with_a_timestep_range_on_one_condition(
    loaded: tuple[Any, ...], edited: tuple[Any, ...], drawn: tuple[Any, Any], which: str, part: dict[str, float]
) -> None:
    import node_helpers

    def partly(positive: Any, negative: Any) -> tuple[Any, Any]:
        late = node_helpers.conditioning_set_values(positive if which == "positive" else negative, part)
        return (late, negative) if which == "positive" else (positive, late)

    # Of the three steps some have both conditions and some have one.
    conds, seen = partly(*drawn), []
    patched = nag(loaded[0], nag_scale=50.0, nag_alpha=1.0, nag_tau=10.0)
    patched.set_model_attn1_output_patch(lambda out, options: (seen.append(tuple(options["cond_or_uncond"])), out)[1])
    plain = draw(loaded[0], conds, 3.0)
    assert float((draw(patched, conds, 3.0) - plain).norm() / plain.norm()) > 1e-4
    assert {frozenset(batch) for batch in seen} == {frozenset((0, 1)), frozenset((int(which == "positive"),))}
    # A pair that cannot share a batch raises an error in a step with both.
    positive, _, negative, _ = edited
    with pytest.raises(ValueError, match=r"^model: NAGuidance needs positive and negative"):
        draw(patched, partly(positive, negative), 3.0)


RUN = {"start_percent": 0.0, "end_percent": 1.0}
UNETS = {
    "HyperTile": ("nodes_hypertile", {"tile_size": 64, "swap_size": 2, "max_depth": 0, "scale_depth": False}),
    "TomePatchModel": ("nodes_tomesd", {"ratio": 0.3}),
    "PerturbedAttentionGuidance": ("nodes_pag", {"scale": 3.0}),
    "SelfAttentionGuidance": ("nodes_sag", {"scale": 0.5, "blur_sigma": 2.0}),
    "PatchModelAddDownscale": (
        "nodes_model_downscale",
        {
            **{"block_number": 3, "downscale_factor": 2.0, **RUN},
            **{"downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic"},
        },
    ),
}


OTHER_MODELS = {
    "FluxKVCache": ("nodes_flux", {}),
    "LTXVSpatioTemporalGuidance": ("nodes_lt", {"scale": 1.0, "blocks": "1", **RUN}),
    "LTXVModalityGuidance": ("nodes_lt", {"modality_scale": 3.0, **RUN}),
    "ChromaRadianceOptions": (
        "nodes_chroma_radiance",
        {
            **{"preserve_wrapper": True, "start_sigma": 1.0, "end_sigma": 0.0, "nerf_tile_size": 8},
            "force_sequential_txt_ids": False,
        },
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("task", ["text to image", "edit"])
@pytest.mark.parametrize("node", [*UNETS, *OTHER_MODELS])
def test_patches_for_other_models_raise_an_error(
    loaded: tuple[Any, ...], drawn: tuple[Any, Any], edited: tuple[Any, ...], node: str, task: str
) -> None:
    import importlib
    import inspect

    module, inputs = (UNETS | OTHER_MODELS)[node]
    try:
        execute = getattr(importlib.import_module(f"comfy_extras.{module}"), node).execute
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {node}")
    taken = inspect.signature(execute).parameters
    patched = execute(model=loaded[0], **{name: value for name, value in inputs.items() if name in taken})[0]
    words = rf"^model: a node of {module} patches .* which Ovis-U1 does not have; remove that node\.$"
    with pytest.raises(ValueError, match=words):
        draw(patched, drawn, 3.0) if task == "text to image" else sample(patched, edited, 6.0, 1.5)
