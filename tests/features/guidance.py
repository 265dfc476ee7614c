"""Nodes that patch guidance or a model's passes, each on text to image and on an edit with two scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from comfy_prompt import PromptFailed

from .table import STEPS, Bench, Lab, other, row, same

AREA = "guidance"
TEXT, EDIT = "text to image", "edit"
Inputs = dict[str, Any]
Make = Callable[[Bench], list[Any]]  # adds nodes; a link from a MODEL
# High scales, because this model's conditions are close to each other.
TXT, IMG = 12.0, 1.5


class Task:
    """Text to image or an edit on a bench, with given guidance scales."""

    def __init__(self, bench: Bench, kind: str) -> None:
        self.bench, self.kind = bench, kind
        self.edited = bench.edited() if kind == EDIT else []

    def __call__(self, model: list[Any], txt: float = TXT, img: float = IMG, **inputs: Any) -> list[Any]:
        """A sampled LATENT."""
        if self.kind == EDIT:
            return self.bench.edit_sampler(self.edited, txt, img, model=model, **inputs)
        return self.bench.ksampler(model=model, cfg=txt, **inputs)


def rows(feature: str, what: str) -> Callable[[Callable[[Task], str | None]], None]:
    """Registers a check for text to image and for an edit."""

    def register(check: Callable[[Task], str | None]) -> None:
        for kind in (TEXT, EDIT):
            row(AREA, f"{feature}, {kind}", what)(lambda lab, kind=kind: check(Task(lab.bench(), kind)))

    return register


def patch(node: str, neutral: Inputs | None, strong: Inputs, steps: int = STEPS, least: float = 1e-3) -> None:
    """Rows for a node that takes a MODEL: neutral settings change nothing, strong ones do."""
    what = "changes the image" if neutral is None else "changes the image; with neutral settings it does not"

    @rows(node, what)
    def check(task: Task) -> None:
        bench, settings = task.bench, [strong] if neutral is None else [strong, neutral]
        models = [bench.node(node, model=bench.model, **inputs) for inputs in settings]
        plain, changed, *unchanged = bench.run(*(task(model, steps=steps) for model in (bench.model, *models)))
        other(changed, plain, least)
        for latent in unchanged:
            same(latent, plain)


patch("RescaleCFG", {"multiplier": 0.0}, {"multiplier": 0.7})
patch("RenormCFG", {"cfg_trunc": 100.0, "renorm_cfg": 0.0}, {"cfg_trunc": 100.0, "renorm_cfg": 0.7})
patch("FreSca", {"scale_low": 1.0, "scale_high": 1.0}, {"scale_low": 0.5, "scale_high": 1.5})
patch("CFGZeroStar", None, {})
patch("CFGNorm", None, {"strength": 0.9})
patch("Mahiro", None, {})
patch("TCFG", None, {})
patch("Epsilon Scaling", {"scaling_factor": 1.0}, {"scaling_factor": 1.1})
patch("TemporalScoreRescaling", {"tsr_k": 1.0, "tsr_sigma": 1.0}, {"tsr_k": 0.8, "tsr_sigma": 1.0})
# Of one image its scale is min_cfg.
patch("VideoLinearCFGGuidance", {"min_cfg": TXT}, {"min_cfg": 3.0})
patch("VideoTriangleCFGGuidance", {"min_cfg": TXT}, {"min_cfg": 3.0})
LAYERS = {"start_percent": 0.0, "end_percent": 1.0}
DOUBLE_AND_SINGLE = {"double_layers": "1", "single_layers": "1"}
patch(
    "SkipLayerGuidanceDiT",
    {"scale": 0.0, "rescaling_scale": 0.0, **DOUBLE_AND_SINGLE, **LAYERS},
    {"scale": 3.0, "rescaling_scale": 0.0, **DOUBLE_AND_SINGLE, **LAYERS},
)
patch("SkipLayerGuidanceSD3", {"layers": "1", "scale": 0.0, **LAYERS}, {"layers": "1", "scale": 3.0, **LAYERS})
patch(
    "SkipLayerGuidanceDiTSimple",
    {**DOUBLE_AND_SINGLE, "start_percent": 1.0, "end_percent": 1.0},
    {**DOUBLE_AND_SINGLE, **LAYERS},
)
STAY = {f"{kind}_{axis}": value for axis in "xyt" for kind, value in (("scale", 1.0), ("shift", 0.0))}
patch("ScaleROPE", STAY, STAY | {"scale_x": 0.5, "shift_y": 3.0})
patch("NAGuidance", None, {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5})
CACHE = {"start_percent": 0.0, "end_percent": 1.0, "verbose": False}
for _cache in ("EasyCache", "LazyCache"):
    patch(_cache, {"reuse_threshold": 0.0, **CACHE}, {"reuse_threshold": 3.0, **CACHE}, steps=8, least=1e-4)


@rows("APG", "changes the image; with neutral settings the scale is higher by one, as core computes it")
def apg(task: Task) -> None:
    bench, txt = task.bench, TXT - 1.0
    neutral = bench.node("APG", model=bench.model, eta=1.0, norm_threshold=0.0, momentum=0.0)
    strong = bench.node("APG", model=bench.model, eta=0.0, norm_threshold=2.0, momentum=0.5)
    # An edit's two scales are the text's over a mixture of both negatives, which stays the same.
    higher = task(bench.model, TXT, 1.0 + (IMG - 1.0) * (TXT - 1.0) / (txt - 1.0))
    higher, one, two = bench.run(higher, task(neutral, txt), task(strong, txt))
    same(one, higher)
    other(two, one)


@rows("PerpNeg", "changes the image; with neg_scale 0 it is plain guidance from the empty conditioning")
def perp_neg(task: Task) -> None:
    bench = task.bench
    empty = bench.encode("a dog")[0]
    neutral, strong = (
        bench.node("PerpNeg", model=bench.model, empty_conditioning=empty, neg_scale=scale) for scale in (0.0, 1.0)
    )
    # From one negative an edit is guided by one scale.
    plain, one, two = bench.run(task(bench.model, TXT, TXT, negative=empty), task(neutral), task(strong))
    same(one, plain)
    other(two, plain)


@rows("LatentApplyOperationCFG", "changes the image; with an operation that does nothing the image stays the same")
def latent_operation(task: Task) -> None:
    bench = task.bench

    def patched(alpha: float) -> list[Any]:
        operation = bench.node("LatentOperationSharpen", sharpen_radius=2, sigma=1.0, alpha=alpha)
        return bench.node("LatentApplyOperationCFG", model=bench.model, operation=operation)

    plain, one, two = bench.run(task(bench.model), task(patched(0.0)), task(patched(1.0)))
    same(one, plain)
    other(two, plain)


@rows("CFGOverride", "replaces the text's scale, in the whole run or a part of it")
def cfg_override(task: Task) -> None:
    bench = task.bench
    whole = bench.node("CFGOverride", model=bench.model, cfg=5.0, start_percent=0.0, end_percent=1.0)
    part = bench.node("CFGOverride", model=bench.model, cfg=5.0, start_percent=0.0, end_percent=0.5)
    plain, given, one, two = bench.run(task(bench.model), task(bench.model, 5.0), task(whole), task(part))
    same(one, given)
    other(two, plain)
    other(two, given)


@row(AREA, "PerpNegGuider", "changes the image; with neg_scale 0 it is CFGGuider with the empty conditioning")
def perp_neg_guider(lab: Lab) -> None:
    bench = lab.bench()
    conds = {"positive": bench.positive, "negative": bench.encode("a dog")[0], "empty_conditioning": bench.negative}
    guiders = [bench.node("PerpNegGuider", model=bench.model, cfg=3.0, neg_scale=s, **conds) for s in (0.0, 1.0)]
    one, two = bench.run(*(bench.custom(guider) for guider in guiders))
    same(one, lab.plain())
    other(two, one)


def refused(node: str, slot: str, models: str = "U-Nets", **inputs: Any) -> None:
    """Rows for a node that patches layers which Ovis-U1 does not have."""

    @rows(node, f"is made for {models}; an error says so")
    def check(task: Task) -> str:
        bench = task.bench
        model = bench.node(node, model=bench.model, **inputs)
        bench.save_latent(task(model), "features")
        with pytest.raises(PromptFailed) as failed:
            bench.execute()
        assert f"patches {slot}" in str(failed.value)
        assert "which Ovis-U1 does not have; remove that node" in str(failed.value)
        return "refused"


refused("PerturbedAttentionGuidance", "attn1 of U-Nets")
refused("SelfAttentionGuidance", "attn1 of U-Nets")
refused("HyperTile", "the attention of U-Nets")
refused("TomePatchModel", "the attention of U-Nets")
refused("PatchModelAddDownscale", "input_block_patch", start_percent=0.0, end_percent=1.0)
refused("FluxKVCache", "the cache of FLUX's reference images", "FLUX")
refused("LTXVSpatioTemporalGuidance", "the self-attention of LTXV's blocks", "LTXV", blocks="1", **LAYERS)
refused("LTXVModalityGuidance", "the attention between LTXV's video and audio", "LTXV", **LAYERS)
refused("ChromaRadianceOptions", "the last layers of Chroma Radiance", "Chroma", nerf_tile_size=8)


def without_effect(node: str) -> None:
    """Rows for a node that multiplies weights by the names that they have in U-Nets."""

    @rows(node, "is made for U-Nets; it has no effect, and core does not report it")
    def check(task: Task) -> str:
        bench = task.bench
        numbers = dict.fromkeys(bench.lab.info.get(node, {}).get("input", {}).get("required", {}), 1.5)
        model = bench.node(node, **{**numbers, "model": bench.model})
        plain, unchanged = bench.run(task(bench.model), task(model))
        same(unchanged, plain)
        return "no effect"


without_effect("UNetSelfAttentionMultiply")
without_effect("UNetCrossAttentionMultiply")
without_effect("UNetTemporalAttentionMultiply")
