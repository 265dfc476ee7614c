"""Files in ComfyUI's quantized formats: conversion, loading, patches, saving, and the errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.headers import misplaced
from helpers.paths import ROOT
from helpers.pipeline import latent_and_answer
from ovis_core.weights import components
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.conversion import write_one
from ovis_core.weights.precision import LARGE, PRECISIONS, QUANTIZED_PRECISIONS
from ovis_core.weights.safetensors_file import CheckpointError

# Largest change of a matrix, relative to its norm.
ROUNDING = {"int8": 0.01, "mxfp8": 0.04, "nvfp4": 0.13, "convrot_w4a4": 0.17}
DECODER, TEXT = "model.diffusion_model.", "text_encoders."
LAYER = "double_blocks.0.img_mlp.0"


@pytest.fixture(scope="module")
def formats(comfyui: Path) -> set[str]:
    """Formats that this ComfyUI has."""
    from ovis_core.native.compat import quantized_formats

    return set(quantized_formats())


@pytest.fixture(scope="module", params=ROUNDING)
def name(request: pytest.FixtureRequest, formats: set[str]) -> str:
    """A choice of convert.py that this ComfyUI can load."""
    if QUANTIZED_PRECISIONS[request.param].format not in formats:
        pytest.skip(f"this ComfyUI does not have {request.param}; test_an_older_comfyui_refuses has the error")
    return request.param


@pytest.fixture(scope="module")
def file(name: str, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in this format."""
    out = tmp_path_factory.mktemp(name) / "one.safetensors"
    write_one(open_model(release), out, QUANTIZED_PRECISIONS[name])
    return out


def apart(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def quant_configs(file: Path) -> dict[str, dict[str, Any]]:
    """Layer -> its quant config."""
    return {
        name.removesuffix(".comfy_quant"): json.loads(tensor.numpy().tobytes())
        for name, tensor in load_file(file).items()
        if name.endswith(".comfy_quant")
    }


def fits(name: str, tensor: Tensor) -> bool:
    return name != "convrot_w4a4" or tensor.shape[1] % 64 == 0


def test_the_large_matrices_are_quantized(file: Path, name: str, release: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    write_one(open_model(release), whole, PRECISIONS["default"])
    plain, found = load_file(whole), quant_configs(file)
    large = {
        key.removesuffix(".weight"): tensor
        for key, tensor in plain.items()
        if LARGE.search(key.removeprefix(DECODER).removeprefix(TEXT)) and fits(name, tensor)
    }
    assert found.keys() == large.keys()
    assert {config["format"] for config in found.values()} == {QUANTIZED_PRECISIONS[name].format}
    stored, own = load_file(file), {f"{layer}.weight" for layer in large}
    assert all(torch.equal(stored[key], plain[key]) for key in plain.keys() - own)
    assert misplaced(file) == []
    again = tmp_path / "again.safetensors"
    write_one(open_model(file), again, PRECISIONS["fp32"])
    back = load_file(again)
    assert max(apart(back[key], plain[key]) for key in own) < ROUNDING[name]


def test_comfy_kitchen_reads_the_same_matrices(file: Path, tmp_path: Path) -> None:
    """ComfyUI's own layer, loaded from the file without this pack, has the same weight."""
    import comfy.ops

    again = tmp_path / "again.safetensors"
    write_one(open_model(file), again, PRECISIONS["fp32"])
    back, stored = load_file(again), load_file(file)
    operations = comfy.ops.mixed_precision_ops({}, torch.float32)
    for layer in (f"{DECODER}{LAYER}", f"{TEXT}llm.model.layers.1.mlp.up_proj"):
        rows, columns = back[f"{layer}.weight"].shape
        linear = operations.Linear(columns, rows, bias=f"{layer}.bias" in stored)
        linear.load_state_dict({k.rpartition(".")[2]: v for k, v in stored.items() if k.rpartition(".")[0] == layer})
        assert torch.equal(linear.weight.dequantize(), back[f"{layer}.weight"])


def test_they_load_as_they_are(file: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The results equal those of dequantized weights, also after core has saved and loaded the model."""
    import comfy.sd
    import comfy.utils

    # Like --disable-mmap: on some CPUs the alignment of mapped weights changes the order of sums.
    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", True)
    kept, text, (model, clip, vae) = latent_and_answer(file)
    plain, plain_text, (whole, whole_clip, _) = latent_and_answer(file, "fp32")
    assert apart(kept, plain) < 1e-5
    assert text == plain_text
    if name != "convrot_w4a4":  # most of the small model's matrices do not fit it
        assert model.model_size() < 0.5 * whole.model_size()
    assert clip.patcher.model_size() < whole_clip.patcher.model_size()
    again = tmp_path / "again.safetensors"
    comfy.sd.save_checkpoint(str(again), model, clip, vae)
    assert misplaced(again) == []
    assert quant_configs(again) == quant_configs(file)
    assert torch.equal(latent_and_answer(again)[0], kept)


def test_they_can_multiply_in_their_format(file: Path, name: str) -> None:
    """`fp8_e4m3fn_fast` does so in the decoder if the device can; on a CPU those are the formats of integers."""
    kept, text, _ = latent_and_answer(file)
    fast, fast_text, _ = latent_and_answer(file, "fp8_e4m3fn_fast")
    if QUANTIZED_PRECISIONS[name].format in ("int8_tensorwise", "convrot_w4a4"):
        assert 1e-4 < apart(fast, kept) < 0.5
    else:
        assert torch.equal(fast, kept)
    assert text == fast_text


@torch.no_grad()
def test_a_patch(file: Path, name: str) -> None:
    """A LoRA takes effect, whether the weight is patched in place or at each use, and leaves nothing behind."""
    from ovis_core.native.loading import load

    model, _, _ = load(open_model(file))
    key = f"diffusion_model.{LAYER}.weight"
    layer = model.model.diffusion_model.double_blocks[0].img_mlp[0]
    x = torch.eye(layer.in_features)
    before = layer(x)
    patched = model.clone()
    patched.add_patches({key: ("diff", ((layer.bias - before).T / 4,))}, 1.0)
    expected = before - (before - layer.bias) / 4
    for budget, rounded in ((1 << 40, ROUNDING[name]), (1, 1e-5)):
        patched.load(torch.device("cpu"), lowvram_model_memory=budget)
        # A patched weight is rounded at random, by up to one step instead of half a step.
        assert float((layer(x) - expected).norm() / (before - layer.bias).norm()) < 2 * rounded
        patched.detach()
        assert torch.equal(layer(x), before)


def test_merging(file: Path, name: str, loaded: tuple[Any, Any, Any], tmp_path: Path) -> None:
    """With a plain model, and two quantized ones, in full precision until the result is rounded."""
    import comfy.model_management
    import comfy.sd

    from ovis_core.native.loading import load
    from ovis_core.native.merging import blocks, merge

    first, second = load(open_model(file))[0], load(open_model(file))[0]
    ratios = dict.fromkeys(blocks(first.model.model_config.decoder), 0.5)
    key = f"{LAYER}.weight"
    plain = loaded[0].model.diffusion_model.get_parameter(key)
    for a, b in ((first, second), (first, loaded[0]), (loaded[0], first)):
        merged = merge(a, b, ratios)
        comfy.model_management.load_models_gpu([merged])
        weight = merged.model.diffusion_model.get_parameter(key)
        assert apart(weight.dequantize() if hasattr(weight, "dequantize") else weight, plain) < 2 * ROUNDING[name]
        if a is first:
            out = tmp_path / f"{id(b)}.safetensors"
            comfy.sd.save_checkpoint(str(out), merged)
            assert quant_configs(out) == {k: v for k, v in quant_configs(file).items() if k.startswith(DECODER)}
        comfy.model_management.unload_all_models()


def test_saving_while_weights_are_in_ram(
    file: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partially loaded, with a patch. Without the pack ComfyUI cannot save formats that are stored as integers."""
    import comfy.model_patcher
    import comfy.utils

    from ovis_core.native.loading import load
    from ovis_core.native.wrapped_core import saving

    parameter = comfy.model_patcher.LazyCastingParamPiece
    monkeypatch.setattr(parameter, "__new__", parameter.__new__)  # to be undone
    saving.register()
    assert parameter(None, "by keyword", tensor=torch.zeros(2, dtype=torch.int8)).dtype == torch.int8

    model = load(open_model(file))[0].clone()
    key = f"diffusion_model.{LAYER}.weight"
    shape = model.model.diffusion_model.get_submodule(LAYER).weight.shape
    model.add_patches({key: ("diff", (torch.full(shape, 0.5),))}, 1.0)
    model.load(torch.device("cpu"), lowvram_model_memory=1)
    out, again = tmp_path / "one.safetensors", tmp_path / "again.safetensors"
    comfy.utils.save_torch_file(model.state_dict_for_saving(), str(out))
    model.detach()
    assert set(quant_configs(out)) == {k for k in quant_configs(file) if k.startswith(DECODER)}
    parts = load_file(file) | load_file(out)
    save_file(parts, again, metadata={"format": "pt"})
    whole = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for source, target in zip((file, again), whole, strict=True):
        write_one(open_model(source), target, PRECISIONS["fp32"])
    before, after = (load_file(target)[DECODER + LAYER + ".weight"] for target in whole)
    assert apart(after, before + 0.5) < 2 * ROUNDING[name]


# ---- files of other tools


def rewritten(file: Path, out: Path, change: Any, metadata: dict[str, str] | None = None) -> Path:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, out, metadata={"format": "pt", **(metadata or {})})
    return out


@pytest.fixture(scope="module")
def whole(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "one.safetensors"
    write_one(open_model(release), out, PRECISIONS["bf16"])
    return out


def in_int8(tensors: dict[str, Tensor], layer: str) -> None:
    matrix = tensors[f"{layer}.weight"].float()
    scale = matrix.abs().amax() / 127
    tensors[f"{layer}.weight"], tensors[f"{layer}.weight_scale"] = (matrix / scale).round().to(torch.int8), scale


def config_tensor(settings: dict[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def test_an_older_comfyui_refuses(whole: Path, formats: set[str], tmp_path: Path) -> None:
    from ovis_core.native.loading import load

    def change(tensors: dict[str, Tensor]) -> None:
        in_int8(tensors, DECODER + LAYER)
        tensors[f"{DECODER}{LAYER}.comfy_quant"] = config_tensor({"format": "int8_tensorwise"})

    file = rewritten(whole, tmp_path / "int8.safetensors", change)
    if "int8_tensorwise" in formats:
        assert apart(latent_and_answer(file)[0], latent_and_answer(whole)[0]) < 0.05
        return
    with pytest.raises(CheckpointError) as error:
        load(open_model(file))
    assert str(error.value) == (
        f"{file}: weights are stored in the format int8_tensorwise, which this ComfyUI does not have; update ComfyUI, "
        "or convert the original weights to bf16 or fp8_scaled (scripts/convert.py)."
    )


def convert(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "convert.py", *arguments]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def test_the_command(release: Path, formats: set[str], tmp_path: Path) -> None:
    """An older ComfyUI's Python has no quantizers; a quantized source is not quantized again."""
    out, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    ran = convert(release, out, "--dtype", "int8")
    if "int8_tensorwise" in formats:
        assert ran.returncode == 0, ran.stderr
        ran = convert(out, again, "--dtype", "nvfp4")
        assert "The source is already quantized (int8_tensorwise); those matrices were not changed." in ran.stdout
        assert quant_configs(again) == quant_configs(out)
        return
    assert ran.returncode == 1
    assert ran.stderr.strip() == (
        "the format int8_tensorwise needs the Python package comfy_kitchen, which newer versions of ComfyUI install; "
        "update ComfyUI, and run this with its Python."
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["weight_scale", "scale_weight"])
def test_weights_without_a_quant_config(whole: Path, tmp_path: Path, suffix: str) -> None:
    """8-bit floats with a scale name their format; integers do not, and are not taken for plain numbers."""
    layer = DECODER + LAYER

    def floats(tensors: dict[str, Tensor]) -> None:
        weight = tensors[f"{layer}.weight"].float()
        tensors[f"{layer}.{suffix}"] = scale = weight.abs().max() / 1000
        tensors[f"{layer}.weight"] = (weight / scale).to(torch.float8_e5m2)

    def integers(tensors: dict[str, Tensor]) -> None:
        in_int8(tensors, layer)
        tensors.pop(f"{layer}.comfy_quant", None)

    opened = open_model(rewritten(whole, tmp_path / "floats.safetensors", floats))
    entry = opened.components[components.DECODER].entries[f"{LAYER}.comfy_quant"]
    assert json.loads(entry.data)["format"] == "float8_e5m2"
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.weight: expected a floating-point dtype, got I8"):
        open_model(rewritten(whole, tmp_path / "integers.safetensors", integers))


@pytest.mark.parametrize("part", ["diffusion model", "text encoder"])
def test_error_for_a_hook(release: Path, formats: set[str], tmp_path: Path, part: str) -> None:
    """The weights stay as they were."""
    import comfy.hooks

    from ovis_core.native.conditions import text_to_image
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sample

    if "int8_tensorwise" not in formats:
        pytest.skip("this ComfyUI does not have these formats")
    (file,) = write_one(open_model(release), tmp_path / "eight.safetensors", QUANTIZED_PRECISIONS["int8"])
    _, _, (model, clip, _) = latent_and_answer(file)

    def draw(*conditions: Any) -> Tensor:
        guider = OvisGuider(model, *conditions, 5.0)
        return sample(guider, {"samples": torch.zeros(1, 4, 8, 8)}, 0, "euler", "ovis_u1", 2, 1.0)["samples"]

    before = draw(*text_to_image(clip, "a cute cat", "", 64, 64))
    patcher, end = (model, f"{LAYER}.weight") if part == "diffusion model" else (clip.patcher, "mlp.up_proj.weight")
    name = next(key for key in patcher.model_state_dict() if key.endswith(end))
    hooks, hook = comfy.hooks.HookGroup(), comfy.hooks.WeightHook()
    hook.weights = hook.weights_clip = {name: ("diff", (torch.ones(patcher.get_model_object(name).shape),))}
    hook.need_weight_init = False
    hooks.add(hook)

    def hooked() -> None:
        if part == "diffusion model":
            conditions = text_to_image(clip, "a cute cat", "", 64, 64)
            draw(*(comfy.hooks.set_hooks_for_conditioning(condition, hooks=hooks) for condition in conditions))
        else:
            target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Clip)
            patcher.register_all_hook_patches(hooks, target)
            patcher.patch_hooks(hooks)

    with pytest.raises(ValueError, match=r"^hooks: ComfyUI cannot apply hooks to quantized weights; set weight_dtype"):
        hooked()
    patcher.patch_hooks(None)
    assert torch.equal(draw(*text_to_image(clip, "a cute cat", "", 64, 64)), before)


@pytest.mark.parametrize("in_header", [True, False])
def test_formats_can_differ_from_layer_to_layer(
    whole: Path, formats: set[str], tmp_path: Path, in_header: bool
) -> None:
    """Quant configs as tensors or in the header; scales of one number; layers that stay plain; quantized embeddings."""
    if "int8_tensorwise" not in formats:
        pytest.skip("this ComfyUI does not have these formats")
    eight, four = tmp_path / "eight.safetensors", tmp_path / "four.safetensors"
    write_one(open_model(whole), eight, QUANTIZED_PRECISIONS["mxfp8"])
    write_one(open_model(whole), four, QUANTIZED_PRECISIONS["nvfp4"])
    chosen = {
        f"{DECODER}single_blocks.0.linear1": load_file(eight),
        f"{TEXT}llm.model.layers.0.mlp.up_proj": load_file(four),
        f"{DECODER}double_blocks.1.txt_mlp.0": load_file(four),
    }
    integers = [f"{DECODER}{LAYER}", f"{DECODER}img_in", f"{TEXT}llm.model.embed_tokens"]
    integers.append(f"{TEXT}llm.model.layers.1.mlp.up_proj")
    layers: dict[str, dict[str, Any]] = {layer: {"format": "int8_tensorwise"} for layer in integers}

    def change(tensors: dict[str, Tensor]) -> None:
        for layer, source in chosen.items():
            own = {k: v for k, v in source.items() if k.rpartition(".")[0] == layer}
            layers[layer] = json.loads(own.pop(f"{layer}.comfy_quant").numpy().tobytes())
            tensors |= own
        for layer in integers:
            in_int8(tensors, layer)
        if not in_header:
            tensors |= {f"{layer}.comfy_quant": config_tensor(config) for layer, config in layers.items()}

    names = {"layers": layers}
    file = rewritten(whole, tmp_path / "mixed.safetensors", change)
    if in_header:
        header = {"_quantization_metadata": json.dumps(names)}
        file = rewritten(file, tmp_path / "header.safetensors", lambda tensors: None, header)
    kept, text, (model, clip, _) = latent_and_answer(file)
    plain, plain_text, _ = latent_and_answer(file, "fp32")
    assert 0 < apart(plain, latent_and_answer(whole)[0]) < 0.3
    assert apart(kept, plain) < 0.02  # int8 does not ask for multiplication in full precision here
    assert text == plain_text
    network = model.model.diffusion_model
    assert network.double_blocks[0].img_mlp[0].quant_format == "int8_tensorwise"
    assert network.double_blocks[1].txt_mlp[0].quant_format == "nvfp4"
    assert network.single_blocks[0].linear1.quant_format == "mxfp8"
    for layer in (network.img_in, network.double_blocks[1].img_mlp[0]):
        assert getattr(layer, "quant_format", None) is None
    assert clip.cond_stage_model.llm.model.layers[0].mlp.up_proj.quant_format == "nvfp4"
    # Newer versions of ComfyUI would multiply these layers in their format while core's Generate Text runs.
    integer = clip.cond_stage_model.llm.model.layers[1].mlp.up_proj
    assert integer.quant_format == "int8_tensorwise"
    assert not integer.can_use_quantized_matmul(set())


def test_smoothing_is_applied_or_refused(whole: Path, formats: set[str], tmp_path: Path) -> None:
    """Weights whose columns were divided by factors, which the layer's input is multiplied by."""
    from ovis_core.native.compat import quantized_formats
    from ovis_core.native.loading import load

    if "nvfp4" not in formats:
        pytest.skip("this ComfyUI does not have these formats")
    four, layer = tmp_path / "four.safetensors", f"{DECODER}{LAYER}"
    write_one(open_model(whole), four, QUANTIZED_PRECISIONS["nvfp4"])

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{layer}.pre_quant_scale"] = torch.full((tensors[f"{layer}.weight"].shape[1] * 2,), 0.5)

    smooth = rewritten(four, tmp_path / "smooth.safetensors", change)
    plain = latent_and_answer(smooth, "fp32")[0]
    assert apart(plain, latent_and_answer(four)[0]) > 1e-3
    if ".pre_quant_scale" in quantized_formats()["nvfp4"]:
        assert apart(latent_and_answer(smooth)[0], plain) < 1e-5
    else:
        with pytest.raises(
            CheckpointError, match="in the format nvfp4 with pre_quant_scale, which this ComfyUI does not"
        ):
            load(open_model(smooth))


def test_damaged_files_are_reported(whole: Path, tmp_path: Path) -> None:
    layer = DECODER + LAYER

    def made(number: int, config: Any, drop: str = "", **more: Tensor) -> Path:
        def change(tensors: dict[str, Tensor]) -> None:
            in_int8(tensors, layer)
            tensors[f"{layer}.comfy_quant"] = config if isinstance(config, Tensor) else config_tensor(config)
            tensors.update({f"{layer}.{name}": tensor for name, tensor in more.items()})
            tensors.pop(f"{layer}.{drop}", None)

        return rewritten(whole, tmp_path / f"{number}.safetensors", change)

    int8 = {"format": "int8_tensorwise"}
    cases = (
        (made(0, {"format": "q4_k"}), rf"{LAYER}: expected one of the formats float8_e4m3fn, .*, got q4_k; "),
        (made(1, torch.zeros(3, dtype=torch.uint8)), rf"{LAYER}\.comfy_quant does not name a format"),
        (
            made(2, int8, "weight_scale"),
            rf"missing tensor .*{LAYER}\.weight_scale, which the format int8_tensorwise needs",
        ),
        (
            made(3, int8, weight_scale=torch.ones(3, 1)),
            r"weight_scale has type F32 and shape \[3, 1\], which the format",
        ),
        (
            made(5, int8, input_scale=torch.ones(3)),
            r"input_scale has type F32 and shape \[3\], which the format",
        ),
        (made(6, {"format": []}), r"expected one of the formats .*, got \[\]"),
        (
            made(4, {"format": "nvfp4"}),
            rf"{LAYER}\.weight has type I8 and shape .* which the format nvfp4 does not have",
        ),
    )
    for file, words in cases:
        with pytest.raises(CheckpointError, match=words):
            open_model(file)
    bad = rewritten(whole, tmp_path / "bad.safetensors", lambda tensors: None, {"_quantization_metadata": "[1"})
    with pytest.raises(CheckpointError, match="_quantization_metadata in its header is not valid"):
        open_model(bad)
