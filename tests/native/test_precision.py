"""The loader's weight_dtype: the type of each weight, and the difference in the results."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from full_size import FULL
from ovis_core.text.decoding import GREEDY
from ovis_core.weights import layout

NAMES = ["bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e4m3fn_fast"]
# Relative to the norm of the results of the stored weights. Real weights should differ less: the small model's weights
# are random, and its fp8 matrices have no scales.
LIMITS = {"bf16": 0.02, "fp16": 0.004, "fp32": 0.0, "fp8_e4m3fn": 0.12, "fp8_e4m3fn_fast": 0.12}


@pytest.fixture(scope="module", params=NAMES)
def kept(request: pytest.FixtureRequest, comfyui: Path, release: Path) -> tuple[str, Any, Any]:
    """Name, MODEL and CLIP."""
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.precision import PRECISIONS

    model, clip, _ = load(open_model(release), PRECISIONS[request.param])
    return request.param, model, clip


def parameters(model: Any, clip: Any) -> dict[str, Tensor]:
    return {**dict(model.model.diffusion_model.named_parameters()), **dict(clip.cond_stage_model.named_parameters())}


def test_dtypes_of_each_weight_dtype(kept: tuple[str, Any, Any]) -> None:
    name, model, clip = kept
    found = parameters(model, clip)
    whole = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.get(name)
    if whole is not None:
        assert {tensor.dtype for tensor in found.values()} == {whole}
        return
    small = {key for key, tensor in found.items() if tensor.dtype == torch.float8_e4m3fn}
    assert {found[key].dtype for key in found.keys() - small} == {torch.float32}
    assert all(found[key].ndim == 2 for key in small)
    assert {
        "double_blocks.0.img_mod.lin.weight",
        "double_blocks.1.img_self_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
        "txt_in.individual_token_refiner.blocks.0.mlp.fc1.weight",
        "llm.model.layers.3.mlp.down_proj.weight",
    } <= small
    for part in ("norm", "embed", "adaLN", "final_layer", "img_in", "time_in", "vector_in", "cls_token", "vte", "bias"):
        assert not [key for key in small if part in key]


def test_dynamic_vram_keeps_these_types(kept: tuple[str, Any, Any]) -> None:
    """Newer versions record a weight's type on the GPU when a network is built, before they load it."""
    _, model, clip = kept
    for network in (model.model.diffusion_model, clip.cond_stage_model):
        for layer in network.modules():
            for name, weight in layer.named_parameters(recurse=False):
                assert getattr(layer, f"{name}_comfy_model_dtype", weight.dtype) == weight.dtype


def test_results_change_little_in_other_precisions(
    kept: tuple[str, Any, Any], loaded: tuple[Any, Any, Any], tensors: dict[str, Tensor]
) -> None:
    from ovis_core.native.conditions import text_to_image
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sample

    def run(model: Any, clip: Any) -> tuple[Tensor, Tensor]:
        positive, negative = text_to_image(clip, "a cute cat", "", 128, 96)
        latent = {"samples": torch.zeros(1, 4, 12, 16)}
        guider = OvisGuider(model, positive, negative, 5.0)
        return positive[0][0], sample(guider, latent, 0, "euler", "ovis_u1", 4, 1.0)["samples"]

    name, model, clip = kept
    moved = [float((a - b).norm() / b.norm()) for a, b in zip(run(model, clip), run(*loaded[:2]), strict=True)]
    assert max(moved) <= LIMITS[name]
    if name != "fp32":
        assert min(moved) > 1e-4


def test_answers(kept: tuple[str, Any, Any]) -> None:
    from ovis_core.native.understanding import understand

    assert understand(kept[2], "Hello", (), (), 8, 4, False, GREEDY).text


def test_new_copies_have_the_same_types(kept: tuple[str, Any, Any]) -> None:
    _, model, clip = kept
    for patcher in (model, clip.patcher):
        load, arguments = patcher.cached_patcher_init
        fresh, old = (dict(p.model.named_parameters()) for p in (load(*arguments), patcher))
        assert fresh.keys() == old.keys()
        assert all(fresh[key].dtype == old[key].dtype and torch.equal(fresh[key], old[key]) for key in old)


def test_patch_on_fp8_weights(kept: tuple[str, Any, Any]) -> None:
    """A LoRA takes effect, rounded to the type of the weight."""
    import comfy.model_management

    name, model, _ = kept
    key = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    patched = model.clone()
    before = patched.model.state_dict()[key].float().clone()
    patched.add_patches({key: ("diff", (torch.full_like(before, 0.5),))}, 1.0)
    comfy.model_management.load_models_gpu([patched])
    moved = patched.model.state_dict()[key].float() - before
    comfy.model_management.unload_all_models()
    assert float(moved.mean()) == pytest.approx(0.5, abs=0.02)
    assert torch.equal(model.model.state_dict()[key].float(), before), name


def test_fp8_size_of_the_full_model(comfyui: Path) -> None:
    from ovis_core.weights.precision import LARGE

    def size(*prefixes: str) -> tuple[float, float]:
        """Gigabytes in bfloat16 and in fp8."""
        half = eight = 0
        for name, shape in layout.tensor_shapes(FULL):
            if name.startswith(prefixes):
                count = torch.Size(shape).numel()
                half += 2 * count
                eight += count if LARGE.search(name.removeprefix(layout.DECODER)) else 2 * count
        return half / 1e9, eight / 1e9

    assert size(layout.DECODER) == pytest.approx((2.25, 1.16), abs=0.02)
    assert size(layout.LANGUAGE) == pytest.approx((3.44, 2.03), abs=0.02)


def test_error_for_values_too_large_for_float16(comfyui: Path, release: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.precision import PRECISIONS
    from ovis_core.weights.safetensors_file import CheckpointError

    damaged = Path(shutil.copytree(release, tmp_path / "damaged"))
    for file in damaged.glob("*.safetensors"):
        tensors = load_file(file)
        for key in tensors:
            if key.endswith("double_blocks.0.img_attn.qkv.weight"):
                tensors[key][1, 2] = 1e5
        save_file(tensors, file, metadata={"format": "pt"})
    words = r"img_attn\.qkv\.weight has values that are too large for float16; set weight_dtype .* to bf16 or fp32"
    with pytest.raises(CheckpointError, match=words):
        load(open_model(damaged), PRECISIONS["fp16"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_is_finite_detects_nan_and_infinity(dtype: torch.dtype) -> None:
    from ovis_core.weights.values import is_finite

    tensor = torch.full((40, 50), 400.0).to(dtype)
    assert is_finite(tensor)
    assert is_finite((-tensor.float()).to(dtype))
    for value in (torch.nan, -torch.nan, *(() if dtype == torch.float8_e4m3fn else (torch.inf,))):
        broken = tensor.float()
        broken[17, 3] = value
        assert not is_finite(broken.to(dtype))


MPS = torch.device("mps")  # only named: ComfyUI's answers about it need no such device


@pytest.mark.parametrize("name", ["fp8_e4m3fn", "fp8_e4m3fn_fast"])
def test_error_for_a_type_that_the_device_does_not_support(comfyui: Path, name: str) -> None:
    from ovis_core.native.layers.dtypes import for_device
    from ovis_core.weights.precision import PRECISIONS

    weights = {torch.bfloat16, torch.float32}
    with pytest.raises(
        ValueError, match=rf"^weight_dtype: {name} .*\(mps\); choose default or one of bf16, fp16, fp32\.$"
    ):
        for_device(PRECISIONS[name], weights, MPS)
    assert for_device(PRECISIONS[name], weights, torch.device("cpu")) == PRECISIONS[name]


def test_fp8_files_load_on_a_device_without_fp8(comfyui: Path, caplog: pytest.LogCaptureFixture) -> None:
    from ovis_core.native.layers.dtypes import for_device
    from ovis_core.weights.precision import DEFAULT, PRECISIONS

    small = {torch.float8_e4m3fn, torch.bfloat16}
    assert for_device(DEFAULT, small, MPS) == PRECISIONS["bf16"]
    assert caplog.messages == [
        "Ovis-U1: weights of type torch.float8_e4m3fn are not supported on this device (mps), so they are loaded "
        "as torch.bfloat16."
    ]
    assert for_device(DEFAULT, small, torch.device("cpu")) == DEFAULT
    for name in ("bf16", "fp16", "fp32"):
        assert for_device(PRECISIONS[name], small, MPS) == PRECISIONS[name]
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert for_device(DEFAULT, {dtype}, MPS) == DEFAULT


@pytest.mark.parametrize(("form", "kept"), [("int8_tensorwise", "default"), ("mxfp8", "fp32"), (None, "default")])
def test_quantized_files_on_a_device_without_fp8(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch, form: str | None, kept: str
) -> None:
    """Such a device cannot cast the values or scales of some formats, so these weights are dequantized."""
    from comfy import model_management

    from ovis_core.native.layers.dtypes import choose_dtypes
    from ovis_core.weights.components import DECODER
    from ovis_core.weights.lazy_tensors import LazyTensor
    from ovis_core.weights.precision import PRECISIONS

    tensors = {"img_in.weight": LazyTensor.of(torch.zeros(2, 2, dtype=torch.float16))}
    if form:
        config = json.dumps({"format": form}).encode()
        tensors["img_in.comfy_quant"] = LazyTensor.of(torch.frombuffer(bytearray(config), dtype=torch.uint8))
    monkeypatch.setattr(model_management, "directml_enabled", True)
    chosen = choose_dtypes(DECODER, tensors, PRECISIONS["default"], torch.device("privateuseone"))
    assert chosen.precision == PRECISIONS[kept]


def test_directml_supports_neither_bfloat16_nor_fp8(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's answers with --directml; only the flag is set here."""
    from comfy import model_management

    from ovis_core.native.layers.dtypes import for_device
    from ovis_core.weights.precision import DEFAULT, PRECISIONS

    monkeypatch.setattr(model_management, "directml_enabled", True)
    device = torch.device("privateuseone")
    assert for_device(DEFAULT, {torch.bfloat16}, device) == PRECISIONS["fp32"]
    with pytest.raises(ValueError, match=r"^weight_dtype: bf16 .*; choose default or one of fp16, fp32\.$"):
        for_device(PRECISIONS["bf16"], {torch.float32}, device)


def test_text_encoder_flag_for_a_type_that_the_device_does_not_support(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy import model_management
    from comfy.cli_args import args

    from ovis_core.native.layers.dtypes import text_dtypes

    monkeypatch.setattr(args, "fp8_e4m3fn_text_enc", True)
    assert text_dtypes(torch.float32, torch.device("cpu"))[0] == torch.float8_e4m3fn
    monkeypatch.setattr(model_management, "directml_enabled", True)
    assert text_dtypes(torch.float32, torch.device("privateuseone"))[0] == torch.float32


def test_float64(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy import model_management

    from ovis_core.native.layers.dtypes import castable, wide_dtype

    assert castable(torch.float64, torch.device("cpu"))
    assert not castable(torch.float64, MPS)
    assert wide_dtype(MPS) == torch.bfloat16
    monkeypatch.setattr(model_management, "directml_enabled", True)
    assert not castable(torch.float64, torch.device("privateuseone"))
    assert wide_dtype(torch.device("privateuseone")) == torch.float32
