"""Samplers, schedulers, guiders and the patches around them."""

from __future__ import annotations

from typing import Any

import torch

from .table import HEIGHT, OTHER, STEPS, WIDTH, Lab, apart, other, row, same

AREA = "samplers"


def every_sampler(lab: Lab, scheduler: str) -> None:
    bench = lab.bench()
    names = list(bench.options("OvisU1Sampler", "sampler_name"))
    assert len(names) > 30
    links = []
    for name in names:
        inputs = {"seed": 7, "steps": 4, "txt_cfg": 3.0, "denoise": 1.0}
        conds = {"positive": bench.positive, "negative": bench.negative, "latent": bench.latent, "model": bench.model}
        links.append(bench.node("OvisU1Sampler", sampler_name=name, scheduler=scheduler, **inputs, **conds))
    plain = lab.plain()
    for name, latent in zip(names, bench.run(*links), strict=True):
        assert latent.isfinite().all(), name
        assert latent.shape == plain.shape, name
        # Noise has a standard deviation of 1 in the model's space, and far more than this model's images in ComfyUI's.
        noise = lab.noise()
        correlation = torch.corrcoef(torch.stack((latent.flatten(), noise.flatten())))[0, 1]
        assert abs(float(correlation)) < 0.999, name
        assert apart(latent, noise) > 0.05, name


for _scheduler in ("ovis_u1", "simple", "beta"):
    row(AREA, f"every sampler_name, {_scheduler}", "finite, of the right shape, and different from the initial noise")(
        lambda lab, scheduler=_scheduler: every_sampler(lab, scheduler)
    )


@row(AREA, "KSampler", "the same as CFGGuider with SamplerCustomAdvanced")
def ksampler(lab: Lab) -> None:
    bench = lab.bench()
    conds = {"positive": bench.positive, "negative": bench.negative}
    guider = bench.node("CFGGuider", model=bench.model, cfg=3.0, **conds)
    one, two = bench.sampled(bench.ksampler(), bench.custom(guider))
    same(one, two)
    other(bench.sampled(bench.ksampler(seed=8)), one)


@row(AREA, "KSamplerAdvanced", "split at a step equals one run")
def advanced(lab: Lab) -> None:
    bench = lab.bench()
    given = {"noise_seed": 7, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple"}
    conds = {"model": bench.model, "positive": bench.positive, "negative": bench.negative}

    def run(latent: list[Any], start: int, end: int, **more: str) -> list[Any]:
        steps = {"start_at_step": start, "end_at_step": end}
        return bench.node("KSamplerAdvanced", latent_image=latent, **given, **conds, **steps, **more)

    whole = run(bench.latent, 0, STEPS, add_noise="enable", return_with_leftover_noise="disable")
    half = run(bench.latent, 0, 2, add_noise="enable", return_with_leftover_noise="enable")
    rest = run(half, 2, STEPS, add_noise="disable", return_with_leftover_noise="disable")
    one, two, leftover = bench.sampled(whole, rest, half)
    same(two, one)
    same(one, lab.plain())
    other(leftover, one)


@row(AREA, "SamplerCustom", "the same as KSampler")
def custom(lab: Lab) -> None:
    bench = lab.bench()
    links = {"positive": bench.positive, "negative": bench.negative, "latent_image": bench.latent}
    sampler = bench.node("KSamplerSelect", sampler_name="euler")
    given = {"add_noise": True, "noise_seed": 7, "cfg": 3.0, "sampler": sampler, "sigmas": bench.sigmas()}
    same(bench.sampled(bench.node("SamplerCustom", model=bench.model, **given, **links)), lab.plain())


@row(AREA, "BasicGuider", "the same as KSampler with cfg 1")
def basic_guider(lab: Lab) -> None:
    bench = lab.bench()
    guider = bench.node("BasicGuider", model=bench.model, conditioning=bench.positive)
    one, two = bench.sampled(bench.ksampler(cfg=1.0), bench.custom(guider))
    same(one, two)
    other(one, lab.plain())


@row(AREA, "DualCFGGuider", "with the same condition twice the same as CFGGuider; a third condition changes it")
def dual_guider(lab: Lab) -> None:
    bench = lab.bench()
    third, _ = bench.encode(OTHER)
    given = {"model": bench.model, "cond1": bench.positive, "negative": bench.negative, "cfg_conds": 3.0}
    # Scales s and 1 with the negative in the middle: negative + s (positive - negative).
    alike = bench.node("DualCFGGuider", **given, cond2=bench.negative, cfg_cond2_negative=1.0, style="regular")
    three = bench.node("DualCFGGuider", **given, cond2=third, cfg_cond2_negative=2.0, style="regular")
    nested = bench.node("DualCFGGuider", **given, cond2=third, cfg_cond2_negative=2.0, style="nested")
    one, two, more = bench.sampled(*(bench.custom(guider) for guider in (alike, three, nested)))
    same(one, lab.plain())
    other(two, one)
    other(more, two)


@row(AREA, "SplitSigmas", "two samplers over the halves equal one over the whole")
def split_sigmas(lab: Lab) -> None:
    bench = lab.bench()
    split, _ = bench.node("SplitSigmas", sigmas=bench.sigmas(), step=2)
    guider = bench.node("CFGGuider", model=bench.model, positive=bench.positive, negative=bench.negative, cfg=3.0)
    first = bench.custom(guider, [split, 0])
    second = bench.custom(guider, [split, 1], noise=bench.node("DisableNoise"), latent_image=first)
    same(bench.sampled(second), lab.plain())


@row(AREA, "ModelSamplingFlux", "its shift is used: that of the model's own size gives the model's own result")
def model_sampling(lab: Lab) -> None:
    bench = lab.bench()
    given = {"seed": 7, "steps": STEPS, "txt_cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    conds = {"positive": bench.positive, "negative": bench.negative, "latent": bench.latent}
    own = bench.node("OvisU1Sampler", model=bench.model, **given, **conds)
    flux = {"base_shift": 0.5, "max_shift": 1.15, "width": WIDTH, "height": HEIGHT}
    patched = bench.node("ModelSamplingFlux", model=bench.model, **flux)
    strong = bench.node("ModelSamplingFlux", model=bench.model, **{**flux, "base_shift": 2.0, "max_shift": 2.0})
    one, two, three = bench.sampled(own, bench.ksampler(model=patched), bench.ksampler(model=strong))
    same(one, two)
    other(three, two)


@row(AREA, "edit with Dual CFG Guider and ReferenceLatent", "the same as OvisU1Sampler on OvisU1EditEncode")
def edit(lab: Lab) -> None:
    bench = lab.bench()
    image = bench.node("EmptyImage", width=WIDTH, height=HEIGHT, batch_size=1, color=0x336699)
    given = {"clip": bench.clip, "vae": bench.vae, "image": image, "prompt": "make it red", "negative_prompt": ""}
    node, _ = bench.node("OvisU1EditEncode", **given, megapixels=0.0)
    positive, image_only, negative, latent = ([node, slot] for slot in range(4))
    own = bench.node(
        "OvisU1Sampler",
        **{"model": bench.model, "positive": positive, "negative": negative, "latent": latent, "denoise": 1.0},
        **{"seed": 7, "steps": STEPS, "txt_cfg": 6.0, "img_cfg": 1.5, "image_only": image_only},
        **{"sampler_name": "euler", "scheduler": "ovis_u1"},
    )
    sigmas = bench.node("OvisU1Scheduler", model=bench.model, latent=latent, steps=STEPS, denoise=1.0)
    size = {"base_shift": 0.5, "max_shift": 1.15, "width": WIDTH, "height": HEIGHT}
    shifted = bench.node("ModelSamplingFlux", model=bench.model, **size)
    conds = {"cond1": positive, "cond2": image_only, "negative": negative}
    scales = {"cfg_conds": 6.0, "cfg_cond2_negative": 1.5, "style": "regular"}
    guider = bench.node("DualCFGGuider", model=shifted, **conds, **scales)
    one, two = bench.sampled(own, bench.custom(guider, sigmas, latent_image=latent))
    same(one, two)
