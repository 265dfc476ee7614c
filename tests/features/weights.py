"""LoRA, hooks, merging and saving."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from comfy_prompt import PromptFailed
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.conversion import write_one
from ovis_core.weights.precision import DEFAULT, QUANTIZED_PRECISIONS

from . import lora_files
from .lora_files import KINDS, STYLES
from .table import PROMPT, Bench, Lab, Unavailable, apart, other, row, same

AREA = "weights"
Link = list[Any]


def release_weights(lab: Lab) -> dict[str, Tensor]:
    if "weights" not in lab.cache:
        files = sorted(lab.release.glob("*.safetensors"))
        lab.cache["weights"] = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return lab.cache["weights"]


def lora(lab: Lab, kind: str, style: str = "generic") -> str:
    """A LoRA file's name in LoraLoader."""
    name = f"{kind}_{style}.safetensors"
    file = lab.server.base / "models" / "loras" / name
    if not file.exists():
        lora_files.write(file, kind, style, release_weights(lab))
    return name


def merged(lab: Lab, kind: str) -> str:
    """The name of a model with the LoRA in its weights."""
    name = f"merged_{kind}"
    folder = lab.server.base / "models" / "ovis_u1" / name
    if not folder.exists():
        shutil.copytree(lab.release, folder)
        changed = lora_files.merge(kind, release_weights(lab))
        for file in folder.glob("*.safetensors"):
            save_file(load_file(file) | {k: v for k, v in changed.items() if k in load_file(file)}, file)
    return name


def with_lora(bench: Bench, name: str, strength: float, clip_strength: float | None = None) -> Link:
    """A KSampler of the bench with a LoRA on model and clip."""
    strengths = {"strength_model": strength, "strength_clip": strength if clip_strength is None else clip_strength}
    node, _ = bench.node("LoraLoader", model=bench.model, clip=bench.clip, lora_name=name, **strengths)
    own = bench.model, bench.clip
    bench.model, bench.clip = [node, 0], [node, 1]
    positive, negative = bench.encode("a red fox in the snow")
    sampled = bench.ksampler(positive=positive, negative=negative)
    bench.model, bench.clip = own
    return sampled


def every_lora(lab: Lab, kind: str, style: str) -> None:
    bench = lab.bench()
    name = lora(lab, kind, style)
    before = len(lab.server.log_text())
    links = [with_lora(bench, name, *strengths) for strengths in ((0.0,), (1.0,), (1.0, 0.0), (0.0, 1.0), (0.5,))]
    none, full, model_only, clip_only, half = bench.run(*links)
    assert torch.equal(none, lab.plain())
    assert "lora key not loaded" not in lab.server.log_text()[before:]
    if f"merged {kind}" not in lab.cache:
        other_bench = lab.bench()
        other_bench.prompt["0"]["inputs"]["model_name"] = merged(lab, kind)
        lab.cache[f"merged {kind}"] = other_bench.sampled()
    same(full, lab.cache[f"merged {kind}"])
    for latent in (full, model_only, clip_only, half):
        other(latent, none)
    other(full, model_only)
    other(full, clip_only)


for _kind in KINDS:
    for _style in STYLES:
        row(
            AREA,
            f"LoraLoader, {_kind}, {_style} names",
            "strength 0 gives the same bits as no LoRA; strength 1 equals merged weights",
        )(lambda lab, kind=_kind, style=_style: every_lora(lab, kind, style))


@row(AREA, "LoraLoaderModelOnly", "the same as LoraLoader with the text encoder at 0")
def model_only(lab: Lab) -> None:
    bench = lab.bench()
    name = lora(lab, "LoRA")
    patched = bench.node("LoraLoaderModelOnly", model=bench.model, lora_name=name, strength_model=1.0)
    one, two = bench.run(bench.ksampler(model=patched), with_lora(bench, name, 1.0, 0.0))
    same(one, two)


@row(AREA, "CreateHookLora, on a condition", "equals LoraLoader, also in the refiner")
def hook(lab: Lab) -> None:
    bench = lab.bench()
    name = lora(lab, "LoRA")
    strengths = {"strength_model": 1.0, "strength_clip": 0.0}
    hooks = bench.node("CreateHookLora", lora_name=name, **strengths)
    positive, negative = (
        bench.node("ConditioningSetProperties", cond_NEW=c, strength=1.0, set_cond_area="default", hooks=hooks)
        for c in (bench.positive, bench.negative)
    )
    hooked, loaded, again = bench.run(
        bench.ksampler(positive=positive, negative=negative), with_lora(bench, name, 1.0, 0.0), bench.ksampler()
    )
    same(hooked, loaded)
    other(hooked, lab.plain())
    same(again, lab.plain(), 0.0)


@row(AREA, "CreateHookLora, then OvisU1Refine", "a condition with hooks is refined during sampling, with the hooks")
def hook_and_refine(lab: Lab) -> None:
    bench = lab.bench()
    name = lora(lab, "LoRA")
    hooks = bench.node("CreateHookLora", lora_name=name, strength_model=1.0, strength_clip=0.0)
    positive, negative = (
        bench.refined(
            bench.node("ConditioningSetProperties", cond_NEW=c, strength=1.0, set_cond_area="default", hooks=hooks)
        )
        for c in (bench.positive, bench.negative)
    )
    hooked, loaded = bench.run(bench.ksampler(positive=positive, negative=negative), with_lora(bench, name, 1.0, 0.0))
    same(hooked, loaded)


# Title -> choice of convert.py, and the largest change of a latent by quantized weights.
FORMATS = {
    "fp8 with scales": ("fp8_scaled", 0.15),
    "int8": ("int8", 0.05),
    "mxfp8": ("mxfp8", 0.15),
    "nvfp4": ("nvfp4", 0.5),
    "convrot_w4a4": ("convrot_w4a4", 0.5),
}


def quantized(lab: Lab, name: str, limit: float) -> None:
    import comfy.ops

    from ovis_core.native.compat import quantized_formats

    if QUANTIZED_PRECISIONS[name].format not in quantized_formats():
        raise Unavailable(name)
    file = lab.server.base / "models" / "ovis_u1" / f"{name}.safetensors"
    if not file.exists():
        write_one(open_model(lab.release), file, QUANTIZED_PRECISIONS[name])
    bench = lab.bench()
    plain = bench.model
    bench.prompt["9000"] = {
        "class_type": "OvisU1Loader",
        "inputs": {"model_name": file.name, "weight_dtype": "default"},
    }
    eight = ["9000", 0]
    loaded = bench.node("LoraLoaderModelOnly", model=eight, lora_name=lora(lab, "LoRA"), strength_model=1.0)
    ratios = [n for n, e in lab.info["OvisU1ModelMerge"]["input"]["required"].items() if e[0] == "FLOAT"]
    half = dict.fromkeys(ratios, 0.5)
    merges = [
        bench.node("ModelMergeSimple", model1=plain, model2=eight, ratio=0.5),
        bench.node("OvisU1ModelMerge", model1=plain, model2=eight, **half),
        bench.node("OvisU1ModelMerge", model1=eight, model2=plain, **half),
    ]
    patched, plainly, *merged_ones = bench.run(
        bench.ksampler(model=loaded),
        with_lora(bench, lora(lab, "LoRA"), 1.0, 0.0),
        *(bench.ksampler(model=m) for m in merges),
    )
    assert apart(patched, plainly) < limit
    for latent in merged_ones:
        assert apart(latent, lab.plain()) < limit
    same(merged_ones[0], merged_ones[1])

    hooked = lab.bench()
    hooked.prompt["0"]["inputs"]["model_name"] = file.name
    hooks = hooked.node("CreateHookLora", lora_name=lora(lab, "LoRA"), strength_model=1.0, strength_clip=0.0)
    given = {"cond_NEW": hooked.positive, "strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    sampled = hooked.ksampler(positive=hooked.node("ConditioningSetProperties", **given), cfg=1.0)
    if hasattr(comfy.ops, "scaled_fp8_ops"):
        assert hooked.sampled(sampled).isfinite().all()
    else:
        with pytest.raises(PromptFailed, match=r"cannot apply hooks to quantized weights; set weight_dtype to bf16"):
            hooked.sampled(sampled)


for _title, (_name, _limit) in FORMATS.items():
    row(
        AREA,
        _title,
        "a LoRA and merges, in both directions, are close to those in full precision; a hook works or raises an error",
    )(lambda lab, name=_name, limit=_limit: quantized(lab, name, limit))


@row(
    AREA,
    "CreateHookLora with keyframes",
    "strength 0 equals no LoRA; switched on halfway, the LoRA gives another result",
)
def hook_keyframes(lab: Lab) -> None:
    bench = lab.bench()
    hooks = bench.node("CreateHookLora", lora_name=lora(lab, "LoRA"), strength_model=1.0, strength_clip=0.0)

    def scheduled(*frames: tuple[float, float]) -> Link:
        frame = None
        for strength, start in frames:
            more = {} if frame is None else {"prev_hook_kf": frame}
            frame = bench.node("CreateHookKeyframe", strength_mult=strength, start_percent=start, **more)
        timed = bench.node("SetHookKeyframes", hooks=hooks, hook_kf=frame)
        positive, negative = (
            bench.node("ConditioningSetProperties", cond_NEW=c, strength=1.0, set_cond_area="default", hooks=timed)
            for c in (bench.positive, bench.negative)
        )
        return bench.ksampler(positive=positive, negative=negative)

    off, on, switched = bench.run(scheduled((0.0, 0.0)), scheduled((1.0, 0.0)), scheduled((0.0, 0.0), (1.0, 0.4)))
    same(off, lab.plain())
    other(on, off)
    other(switched, off)
    other(switched, on)


@row(AREA, "SetClipHooks", "a LoRA on the text encoder by hooks equals LoraLoader's")
def clip_hooks(lab: Lab) -> None:
    bench = lab.bench()
    name = lora(lab, "LoRA")
    hooks = bench.node("CreateHookLora", lora_name=name, strength_model=0.0, strength_clip=1.0)
    own = bench.clip
    bench.clip = bench.node("SetClipHooks", clip=own, apply_to_conds=False, schedule_clip=False, hooks=hooks)
    positive, negative = bench.encode("a red fox in the snow")
    bench.clip = own
    hooked, loaded = bench.run(bench.ksampler(positive=positive, negative=negative), with_lora(bench, name, 0.0, 1.0))
    same(hooked, loaded)
    other(hooked, lab.plain())


@row(AREA, "ModelMergeSimple", "with ratio 1 the first model, with 0 the second, with 0.5 neither")
def merge_simple(lab: Lab) -> None:
    bench = lab.bench()
    second, _ = bench.node("OvisU1Loader", model_name=merged(lab, "LoRA"), weight_dtype="default")
    mixes = [bench.node("ModelMergeSimple", model1=bench.model, model2=[second, 0], ratio=r) for r in (1.0, 0.0, 0.5)]
    first, last, half, alone = bench.run(*(bench.ksampler(model=m) for m in (*mixes, [second, 0])))
    same(first, lab.plain())
    same(last, alone)
    assert 0 < apart(half, first) < apart(last, first) * 2
    other(half, last)


@row(AREA, "ModelMergeAdd, ModelMergeSubtract", "a model that is subtracted and added again gives the first model")
def merge_add(lab: Lab) -> None:
    bench = lab.bench()
    second, _ = bench.node("OvisU1Loader", model_name=merged(lab, "LoRA"), weight_dtype="default")
    less = bench.node("ModelMergeSubtract", model1=[second, 0], model2=bench.model, multiplier=1.0)
    again = bench.node("ModelMergeAdd", model1=bench.model, model2=less)
    one, two = bench.run(bench.ksampler(model=again), bench.ksampler(model=[second, 0]))
    same(one, two, 1e-4)


@row(
    AREA,
    "OvisU1ModelMerge",
    "with all ratios at 1 the first model, with all at 0 the second, with mixed ratios neither",
)
def merge_blocks(lab: Lab) -> None:
    bench = lab.bench()
    second, _ = bench.node("OvisU1Loader", model_name=merged(lab, "LoRA"), weight_dtype="default")
    links = {"model1": bench.model, "model2": [second, 0]}
    spec = lab.info["OvisU1ModelMerge"]["input"]["required"]
    ratios = [name for name, entry in spec.items() if entry[0] == "FLOAT"]

    def mix(value: float, **others: float) -> Link:
        return bench.node("OvisU1ModelMerge", **links, **{**dict.fromkeys(ratios, value), **others})

    mixes = (mix(1.0), mix(0.0), mix(1.0, **{"double_blocks.0.": 0.0}), [second, 0])
    first, last, some, alone = bench.run(*(bench.ksampler(model=m) for m in mixes))
    same(first, lab.plain())
    same(last, alone)
    other(some, first)
    other(some, last)


@row(AREA, "CheckpointSave, ModelSave, CLIPSave, VAESave", "files saved with a LoRA give the same image again")
def save(lab: Lab) -> None:
    bench = lab.bench()
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    node, _ = bench.node("LoraLoader", model=bench.model, clip=bench.clip, lora_name=lora(lab, "LoRA"), **strengths)
    given = {"model": [node, 0], "clip": [node, 1], "vae": bench.vae}
    bench.node("CheckpointSave", **given, filename_prefix="features/whole")
    bench.node("ModelSave", model=[node, 0], filename_prefix="features/decoder")
    bench.node("CLIPSave", clip=[node, 1], filename_prefix="features/text")
    bench.node("VAESave", vae=bench.vae, filename_prefix="features/vae")
    (expected,) = bench.run(with_lora(bench, lora(lab, "LoRA"), 1.0))
    written = lab.server.base / "output" / "features"
    found = {}
    places = {"whole": "checkpoints", "decoder": "diffusion_models", "text": "text_encoders", "vae": "vae"}
    for name, kind in places.items():
        (file,) = written.glob(f"{name}_*.safetensors")
        target = lab.server.base / "models" / kind / f"features_{name}.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, target)
        found[name] = target.name
    whole = lab.bench()
    whole.prompt["0"]["inputs"]["model_name"] = f"checkpoints/{found['whole']}"
    same(whole.sampled(), expected, 1e-5)
    parts = lab.bench()
    names = {"diffusion_model_name": "decoder", "text_encoder_name": "text", "vae_name": "vae"}
    chosen = {key: found[name] for key, name in names.items()}
    parts.prompt["0"] = {"class_type": "OvisU1LoadParts", "inputs": {**chosen, "weight_dtype": "default"}}
    same(parts.sampled(), expected, 1e-5)


@row(AREA, "CheckpointLoaderSimple, UNETLoader, CLIPLoader", "convert.py's files give the same image as OvisU1Loader")
def core_loaders(lab: Lab) -> None:
    models = lab.server.base / "models"
    name = "core_row.safetensors"
    for folder in ("checkpoints", "diffusion_models", "text_encoders"):
        (models / folder).mkdir(parents=True, exist_ok=True)
        if not (models / folder / name).exists():
            # Core's loaders take their part of a file with all parts.
            write_one(open_model(lab.release), models / folder / name, DEFAULT)
    own = lab.bench()
    own.prompt["0"]["inputs"]["model_name"] = f"checkpoints/{name}"
    whole = lab.bench()
    whole.prompt["0"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
    parts = lab.bench()
    parts.model = parts.node("UNETLoader", unet_name=name)
    parts.clip = parts.node("CLIPLoader", clip_name=name)
    parts.positive, parts.negative = parts.encode(PROMPT)
    expected = own.sampled()
    assert torch.equal(whole.sampled(), expected)
    assert torch.equal(parts.sampled(), expected)
