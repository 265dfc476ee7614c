"""ComfyUI's own loaders on Ovis-U1's files, and on those of other models."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.paths import ROOT
from helpers.pictures import picture
from ovis_core.pixels import to_tensor
from ovis_core.weights.checkpoint import open_model, open_parts
from ovis_core.weights.conversion import NAMES, write_one, write_parts
from ovis_core.weights.precision import DEFAULT, PRECISIONS, QUANTIZED_PRECISIONS, Precision
from ovis_core.weights.safetensors_file import CheckpointError

FUNCTIONS = ("load_state_dict_guess_config", "load_diffusion_model_state_dict", "load_text_encoder_state_dicts")
DECODER, TEXT = "model.diffusion_model.", "text_encoders."
META = torch.device("meta")
FP8 = torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def core(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Any]]:
    """The pack's loaders are in place; core's own functions by name."""
    import comfy.sd

    from ovis_core.native.wrapped_core import core_loaders, wrapping

    own = {name: getattr(comfy.sd, name) for name in FUNCTIONS}
    assert not any(hasattr(function, wrapping.CURRENT) for function in own.values())
    for name, function in own.items():
        monkeypatch.setattr(comfy.sd, name, function)  # to be undone
    core_loaders.register()
    return own


@pytest.fixture(scope="module")
def one(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as one file."""
    (file,) = write_one(open_model(release), tmp_path_factory.mktemp("one") / "one.safetensors", DEFAULT)
    return file


@pytest.fixture(scope="module")
def parts(release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small model as a file for each part."""
    files = write_parts(open_model(release), tmp_path_factory.mktemp("parts"), DEFAULT)
    return dict(zip(NAMES.values(), files, strict=True))


def from_checkpoint(file: Path, **options: Any) -> tuple[Any, Any, Any]:
    import comfy.sd

    return comfy.sd.load_checkpoint_guess_config(str(file), **options)[:3]


def from_parts(parts: dict[str, Path]) -> tuple[Any, Any]:
    """MODEL and CLIP by Load Diffusion Model and Load CLIP."""
    import comfy.sd

    model = comfy.sd.load_diffusion_model(str(parts["diffusion_model"]))
    return model, comfy.sd.load_clip([str(parts["text_encoder"])])


def results(model: Any, clip: Any, vae: Any) -> tuple[Tensor, Tensor, Tensor, str]:
    """A latent, an edit, the picture of the edit, and an answer about a picture."""
    from ovis_core.native.conditions import edit, text_to_image
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sample
    from ovis_core.native.understanding import understand
    from ovis_core.text.decoding import GREEDY

    image = to_tensor(picture(96, 64))
    empty = {"samples": torch.zeros(1, 4, 8, 12)}
    drawn = sample(
        OvisGuider(model, *text_to_image(clip, "a cute cat", "", 96, 64), 5.0), empty, 1, "euler", "ovis_u1", 2, 1.0
    )
    positive, image_only, negative, latent = edit(clip, vae, image[None], "add a hat")
    guider = OvisGuider(model, positive, negative, 6.0, image_only, 1.5)
    edited = sample(guider, latent, 1, "euler", "ovis_u1", 2, 1.0)["samples"]
    answer = understand(clip, "What is it?", [image], (), 8, 8, False, GREEDY).text
    return drawn["samples"], edited, vae.decode(edited), answer


def equal(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    assert ours[-1] == theirs[-1]
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


def test_load_checkpoint(one: Path) -> None:
    from ovis_core.native.loading import load

    equal(results(*from_checkpoint(one)), results(*load(open_model(one))))


def test_load_diffusion_model_and_load_clip(parts: dict[str, Path]) -> None:
    from ovis_core.native.loading import load

    ours = load(open_parts(*parts.values()))
    equal(results(*from_parts(parts), ours[2]), results(*ours))


def test_parts_of_a_checkpoint(one: Path, parts: dict[str, Path]) -> None:
    """Load Diffusion Model and Load CLIP on a file with all parts; Load Checkpoint on a file with a decoder."""
    model, clip = from_parts(dict.fromkeys(parts, one))
    whole = from_checkpoint(one)
    equal(results(model, clip, whole[2]), results(*whole))
    model, clip, vae = from_checkpoint(parts["diffusion_model"])
    assert weights(model.model.diffusion_model).keys() == weights(whole[0].model.diffusion_model).keys()
    assert clip is None
    with pytest.raises(RuntimeError, match="VAE is invalid"):
        vae.throw_exception_if_invalid()


def test_what_core_saves(one: Path, tmp_path: Path) -> None:
    """Save Checkpoint, after and before core's loader."""
    import comfy.sd

    whole = from_checkpoint(one)
    again = tmp_path / "again.safetensors"
    comfy.sd.save_checkpoint(str(again), *whole)
    assert load_file(again).keys() >= {name for name in load_file(one) if not name.startswith("first_stage_model.")}
    loaded = from_checkpoint(again)
    for ours, theirs in zip(networks(*loaded), networks(*whole), strict=True):
        same(ours, theirs)


def test_only_what_is_asked_for(one: Path) -> None:
    model, clip, vae = from_checkpoint(one, output_vae=False, output_clip=False)
    assert model is not None
    assert clip is vae is None
    model, clip, vae = from_checkpoint(one, output_model=False, output_vae=False)
    assert clip is not None
    assert model is vae is None


def test_a_copy_for_another_gpu(one: Path, parts: dict[str, Path]) -> None:
    """ComfyUI makes one with the function that it has put into the patcher."""
    patchers = [patched.patcher if hasattr(patched, "patcher") else patched for patched in from_checkpoint(one)]
    patchers += [patched.patcher if hasattr(patched, "patcher") else patched for patched in from_parts(parts)]
    if not hasattr(patchers[0], "cached_patcher_init"):
        pytest.skip("this ComfyUI does not make copies")
    for patcher in patchers:
        function, arguments, *place = patcher.cached_patcher_init
        again = function(*arguments, disable_dynamic=True)
        for index in place:
            again = again[index]
        assert type(again.model) is type(patcher.model)
        same(again.model, patcher.model)


def networks(model: Any, clip: Any, vae: Any) -> tuple[Any, Any, Any]:
    return model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model


def weights(network: Any) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def same(ours: Any, theirs: Any) -> None:
    """Both networks have the same weights in the same types."""
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    assert a
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].float(), b[name].float()), name


def test_weights_are_not_copied(one: Path) -> None:
    """Without a GPU the layers take the tensors of the state dict."""
    import comfy.sd
    import comfy.utils

    state_dict = comfy.utils.load_torch_file(str(one))
    places = {tensor.data_ptr() for tensor in state_dict.values()}
    model, clip, _, _ = comfy.sd.load_state_dict_guess_config(state_dict)
    for network in (model.model.diffusion_model, clip.cond_stage_model):
        assert all(parameter.data_ptr() in places for parameter in network.parameters())


# ---- options


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"dtype": FP8}, "fp8_e4m3fn"),
        ({"dtype": FP8, "fp8_optimizations": True}, "fp8_e4m3fn_fast"),
        ({"dtype": torch.bfloat16}, "bf16"),
        ({"dtype": torch.float16}, "fp16"),
        ({"dtype": None}, "default"),
        ({"fp8_optimizations": True}, "default"),
    ],
)
def test_weight_dtype(parts: dict[str, Path], one: Path, options: dict[str, Any], name: str) -> None:
    """As our loader's. Load Diffusion Model offers fp8; other packs also ask for the other types."""
    import comfy.sd

    from ovis_core.native.loading import load

    ours = networks(*load(open_parts(*parts.values()), PRECISIONS[name]))
    same(comfy.sd.load_diffusion_model(str(parts["diffusion_model"]), options).model.diffusion_model, ours[0])
    same(comfy.sd.load_clip([str(parts["text_encoder"])], model_options=options).cond_stage_model, ours[1])
    loaded = from_checkpoint(one, model_options=options, te_model_options=options)
    for a, b in zip(networks(*loaded), ours, strict=True):
        same(a, b)


@pytest.mark.parametrize("name", ["fp8_e4m3fn", *QUANTIZED_PRECISIONS])
def test_quantized_weights_stay_as_they_are(release: Path, tmp_path: Path, name: str) -> None:
    from ovis_core.native.compat import quantized_formats
    from ovis_core.native.loading import load

    precision: Precision = {**PRECISIONS, **QUANTIZED_PRECISIONS}[name]
    if precision.format and precision.format not in quantized_formats():
        pytest.skip(f"this ComfyUI does not have {name}")
    (file,) = write_one(open_model(release), tmp_path / "eight.safetensors", precision)
    loaded, ours = from_checkpoint(file), load(open_model(file))
    for a, b in zip(networks(*loaded), networks(*ours), strict=True):
        same(a, b)
    assert loaded[0].model_size() == ours[0].model_size()
    if name in ("fp8_e4m3fn", "fp8_scaled"):
        assert ours[0].model_size() < 0.4 * load(open_model(release))[0].model_size()
    equal(results(*loaded), results(*ours))
    if precision.format:
        import comfy.ops

        with pytest.raises(ValueError, match=r"custom_operations: quantized weights need .*choose a file in bf16"):
            from_checkpoint(file, model_options={"custom_operations": comfy.ops.manual_cast})


def test_load_clip_reads_formats_in_the_header(parts: dict[str, Path], tmp_path: Path) -> None:
    import comfy.sd

    from ovis_core.native.compat import quantized_formats

    file, tensors = str(tmp_path / "text.safetensors"), load_file(parts["text_encoder"])
    layer = next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight")).removesuffix(".weight")
    weight = tensors[f"{layer}.weight"].float()
    tensors[f"{layer}.weight_scale"] = scale = weight.abs().max() / 127
    tensors[f"{layer}.weight"] = (weight / scale).round().to(torch.int8)
    header = {"layers": {layer: {"format": "int8_tensorwise"}}}
    save_file(tensors, file, {"_quantization_metadata": json.dumps(header)})
    if "int8_tensorwise" in quantized_formats():
        own = comfy.sd.load_clip([file]).cond_stage_model.get_submodule("llm.model.layers.0.mlp.up_proj")
        assert own.weight.dequantize().float().sub(weight).norm() < 0.02 * weight.norm()
        return
    with pytest.raises(CheckpointError, match="format int8_tensorwise, which this ComfyUI does not have"):
        comfy.sd.load_clip([file])


@torch.no_grad()
def test_load_clip_reads_older_files_with_scales(parts: dict[str, Path], tmp_path: Path) -> None:
    """Each layer has a scale of 1, even if it is not quantized; newer versions name one format for all of them."""
    import comfy.sd

    from ovis_core.native.compat import quantized_formats

    tensors, file = load_file(parts["text_encoder"]), str(tmp_path / "text.safetensors")
    layers = [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]
    dtypes = {"float8_e4m3fn": FP8, "float8_e5m2": torch.float8_e5m2}
    for layer, name in zip(layers, dtypes.keys() & quantized_formats(), strict=False):
        tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(dtypes[name])
    scales = {f"{layer}.scale_weight": torch.ones(1) for layer in layers}
    save_file(tensors | scales | {"scaled_fp8": torch.zeros(2, dtype=FP8)}, file)
    network = comfy.sd.load_clip([file]).cond_stage_model
    for name in layers:
        layer = network.get_submodule(name)
        assert torch.equal(layer(torch.eye(layer.in_features)).T, tensors[f"{name}.weight"].float()), name


def test_parts_that_are_not_wanted_are_not_checked(one: Path) -> None:
    import comfy.sd

    lacks = {name: tensor for name, tensor in load_file(one).items() if "decoder.conv_out" not in name}
    assert comfy.sd.load_state_dict_guess_config(lacks, output_vae=False)[0] is not None


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float64])
def test_a_type_that_is_not_offered(parts: dict[str, Path], dtype: torch.dtype) -> None:
    import comfy.sd

    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=f"^weight_dtype: expected default, .*, got {name}; choose one of these.$"):
        comfy.sd.load_diffusion_model(str(parts["diffusion_model"]), {"dtype": dtype})


def test_other_layers_and_devices(parts: dict[str, Path]) -> None:
    """Those of other packs' loaders, and Load CLIP's `device`."""
    import comfy.ops
    import comfy.sd

    class Operations(comfy.ops.manual_cast):
        class Linear(comfy.ops.manual_cast.Linear):
            pass

    run, rest = torch.device("cpu:0"), torch.device("cpu")
    options = {"custom_operations": Operations, "load_device": run, "offload_device": rest, "initial_device": rest}
    model = comfy.sd.load_diffusion_model(str(parts["diffusion_model"]), options)
    clip = comfy.sd.load_clip([str(parts["text_encoder"])], model_options=options)
    for patcher in (model, clip.patcher):
        layers = [layer for layer in patcher.model.modules() if isinstance(layer, torch.nn.Linear)]
        assert layers
        assert all(isinstance(layer, Operations.Linear) for layer in layers)
        assert (patcher.load_device, patcher.offload_device) == (run, rest)
        assert str(patcher.load_device) == "cpu:0"
    assert str(clip.cond_stage_model.run_device) == "cpu:0"


# ---- files that cannot be loaded


def test_one_file_of_the_release(release: Path) -> None:
    import comfy.sd

    shards = sorted(release.glob("model-*.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        for load in (
            comfy.sd.load_checkpoint_guess_config,
            comfy.sd.load_diffusion_model,
            lambda file: comfy.sd.load_clip([file]),
        ):
            with pytest.raises(CheckpointError, match=r"one of the files of the Ovis-U1 release.* folder in Ovis"):
                load(str(shard))


def test_files_that_do_not_fit(one: Path, parts: dict[str, Path]) -> None:
    """ComfyUI cannot load them either."""
    import comfy.sd

    whole = load_file(one)
    lacks = {name: tensor for name, tensor in whole.items() if name != f"{DECODER}img_in.weight"}
    with pytest.raises(CheckpointError, match=r"diffusion model: missing tensor .*\.img_in\.weight"):
        comfy.sd.load_state_dict_guess_config(lacks)
    with pytest.raises(CheckpointError, match=r"missing tensor model\.diffusion_model\.img_in\.weight"):
        comfy.sd.load_diffusion_model_state_dict(lacks)
    with pytest.raises(CheckpointError, match=r"text_encoders\.vte\.weight has shape \[2, 2\]"):
        comfy.sd.load_text_encoder_state_dicts([whole | {f"{TEXT}vte.weight": torch.zeros(2, 2)}])
    with pytest.raises(CheckpointError, match=r"img_in\.weight: expected one of the dtypes .*, got torch\.int16"):
        comfy.sd.load_diffusion_model_state_dict(
            whole | {f"{DECODER}img_in.weight": whole[f"{DECODER}img_in.weight"].to(torch.int16)}
        )
    for load in (comfy.sd.load_checkpoint_guess_config, comfy.sd.load_diffusion_model):
        with pytest.raises(CheckpointError, match="no diffusion model; choose it in Load CLIP"):
            load(str(parts["text_encoder"]))
    with pytest.raises(CheckpointError, match="one text encoder, got several; choose its file"):
        comfy.sd.load_clip([str(parts["text_encoder"]), str(parts["text_encoder"])])


def test_the_published_vae_in_load_vae() -> None:
    """ComfyUI's own VAE loader reads it, so it is not wrapped."""
    import comfy.sd

    from ovis_core.native.vae import build_vae
    from ovis_core.weights.layout import vae_shapes
    from ovis_core.weights.lazy_tensors import LazyTensor
    from ovis_core.weights.release import RELEASE

    generator = torch.Generator().manual_seed(0)
    tensors = {n: 0.02 * torch.randn(s, generator=generator) for n, s in vae_shapes(RELEASE.vae).items()}
    core = comfy.sd.VAE(sd=dict(tensors))
    core.throw_exception_if_invalid()
    ours = build_vae(RELEASE.vae, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()})
    same(core.first_stage_model, ours.first_stage_model)
    assert core.latent_channels == ours.latent_channels == 4


# ---- other models


def unet(**config: Any) -> dict[str, Tensor]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    common = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False}
    common |= {"use_spatial_transformer": True, "use_temporal_attention": False, "use_temporal_resblock": False}
    return of_network(UNetModel, **common, **config)


def sd15() -> dict[str, Tensor]:
    return unet(
        adm_in_channels=None,
        num_res_blocks=[2, 2, 2, 2],
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        channel_mult=[1, 2, 4, 4],
        transformer_depth_middle=1,
        use_linear_in_transformer=False,
        context_dim=768,
        num_heads=8,
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    )


def sdxl() -> dict[str, Tensor]:
    return unet(
        num_classes="sequential",
        adm_in_channels=2816,
        num_res_blocks=[2, 2, 2],
        transformer_depth=[0, 0, 2, 2, 10, 10],
        channel_mult=[1, 2, 4],
        transformer_depth_middle=10,
        use_linear_in_transformer=True,
        context_dim=2048,
        num_head_channels=64,
        transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10],
    )


DIT = {
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "qkv_bias": True,
    "guidance_embed": True,
    "in_channels": 16,
    "out_channels": 16,
}


def flux() -> dict[str, Tensor]:
    from comfy.ldm.flux.model import Flux, FluxParams

    later = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}
    return of_network(Flux, **DIT, theta=10000, patch_size=2, **later)


def hunyuan_video() -> dict[str, Tensor]:
    from comfy.ldm.hunyuan_video.model import HunyuanVideo, HunyuanVideoParams

    names = ("byt5", "meanflow", "use_cond_type_embedding", "vision_in_dim", "meanflow_sum")
    later = {name: None for name in names if name in HunyuanVideoParams.__annotations__}
    return of_network(HunyuanVideo, **DIT, theta=256, patch_size=[1, 2, 2], **later)


def qwen_image() -> dict[str, Tensor]:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return of_network(QwenImageTransformer2DModel)


def of_network(network: type, **config: Any) -> dict[str, Tensor]:
    """The state dict of one of core's networks, without data."""
    import comfy.ops

    return network(**config, dtype=torch.float32, device=META, operations=comfy.ops.disable_weight_init).state_dict()


OTHERS = {"SD15": sd15, "SDXL": sdxl, "Flux": flux, "HunyuanVideo": hunyuan_video, "QwenImage": qwen_image}


class Detected(Exception):
    """Stops a loader when it knows the model."""


@pytest.fixture
def detection(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, ...]]:
    """Runs one of core's loaders until it knows the model; returns what it knows."""
    import comfy.model_detection
    import comfy.sd

    detect = comfy.model_detection.model_config_from_unet

    def detecting(state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> Any:
        config = detect(state_dict, prefix, *args, **kwargs)
        raise Detected(type(config).__name__, config and config.unet_config, prefix, list(state_dict))

    class NoClip:
        def __init__(self, target: Any, **kwargs: Any) -> None:
            classes = [(found.__module__, found.__qualname__) for found in (target.clip, target.tokenizer)]
            raise Detected(*classes, repr(target.params), kwargs["parameters"])

    monkeypatch.setattr(comfy.model_detection, "model_config_from_unet", detecting)
    monkeypatch.setattr(comfy.sd, "CLIP", NoClip)

    def run(load: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with pytest.raises(Detected) as stopped:
            load(*args, **kwargs)
        return stopped.value.args

    return run


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("prefix", ["", DECODER], ids=["bare", "prefixed"])
def test_other_diffusion_models_are_detected_as_without_the_pack(
    core: dict[str, Any], detection: Callable[..., tuple[Any, ...]], name: str, prefix: str
) -> None:
    import comfy.sd

    tensors = {prefix + key: tensor for key, tensor in OTHERS[name]().items()}
    for function in FUNCTIONS[:1] if prefix else FUNCTIONS[:2]:
        with_pack, without = (detection(f, dict(tensors)) for f in (getattr(comfy.sd, function), core[function]))
        assert with_pack == without
        assert prefix == "" or with_pack[0] == name
    assert detection(comfy.sd.load_diffusion_model_state_dict, dict(tensors))[0] == name


# Names and shapes by which core recognises a text encoder.
CLIP_L = {"text_model.encoder.layers.0.mlp.fc1.weight": (3072, 768)}
CLIP_G = {"text_model.encoder.layers.30.mlp.fc1.weight": (5120, 1280)}
T5 = {"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": (10240, 4096)}
LLAMA = {"model.layers.0.post_attention_layernorm.weight": (4096,), "model.layers.0.self_attn.k_proj.weight": (1024, 4)}
QWEN25 = {"model.layers.0.self_attn.k_proj.bias": (512,), "model.layers.0.self_attn.k_proj.weight": (512, 3584)}
QWEN3 = {"model.layers.0.post_attention_layernorm.weight": (2560,), "model.layers.0.self_attn.q_norm.weight": (128,)}
TEXT_ENCODERS = {
    "SD15": ("STABLE_DIFFUSION", CLIP_L),
    "SDXL": ("STABLE_DIFFUSION", CLIP_L, CLIP_G),
    "Flux": ("FLUX", CLIP_L, T5),
    "HunyuanVideo": ("HUNYUAN_VIDEO", CLIP_L, LLAMA),
    "QwenImage": ("QWEN_IMAGE", QWEN25),
    "Qwen3": ("STABLE_DIFFUSION", QWEN3),
    "unknown": ("STABLE_DIFFUSION", {"llm.lm_head.bias": (1,), "another": (1,)}),
}


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_other_text_encoders_are_detected_as_without_the_pack(
    core: dict[str, Any], detection: Callable[..., tuple[Any, ...]], name: str
) -> None:
    import comfy.sd

    kind, *files = TEXT_ENCODERS[name]
    found = []
    for function in (comfy.sd.load_text_encoder_state_dicts, core["load_text_encoder_state_dicts"]):
        dicts = [{key: torch.empty(shape, device=META) for key, shape in file.items()} for file in files]
        found.append(detection(function, dicts, clip_type=getattr(comfy.sd.CLIPType, kind)))
    assert found[0] == found[1]


def test_an_unknown_file_stays_unknown(core: dict[str, Any]) -> None:
    import comfy.sd

    lora = {"visual_generator.backbone.img_in.lora_A.weight": torch.zeros(1), "llm.model.norm.diff": torch.zeros(1)}
    for other in ({"a.weight": torch.zeros(1)}, lora, {}):
        for function in FUNCTIONS[:2]:
            assert getattr(comfy.sd, function)(dict(other)) is None
            assert core[function](dict(other)) is None


def test_a_fault_of_ours_stops_no_other_model(
    core: dict[str, Any],
    detection: Callable[..., tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import comfy.sd

    from ovis_core.native.wrapped_core import core_loaders
    from ovis_core.weights import recognition

    def fails(*args: Any) -> Any:
        raise ZeroDivisionError("a fault")

    expected = detection(core["load_diffusion_model_state_dict"], flux())
    steps = ((core_loaders, "reads_ovis_u1"), (core_loaders, "bound_arguments"), (recognition, "has_component"))
    for module, step in steps:
        with monkeypatch.context() as context, caplog.at_level(logging.WARNING):
            context.setattr(module, step, fails)
            caplog.clear()
            assert detection(comfy.sd.load_diffusion_model_state_dict, flux()) == expected
            assert detection(comfy.sd.load_state_dict_guess_config, sd15())[0]
            assert detection(comfy.sd.load_text_encoder_state_dicts, [dict.fromkeys(CLIP_L, torch.zeros(1))])
        faults = [record for record in caplog.records if "could not check whether this is an Ovis-U1" in record.message]
        assert len(faults) == 3
        assert all(record.exc_info and record.exc_info[0] is ZeroDivisionError for record in faults)


def test_tensors_that_cannot_be_read_are_core_s(core: dict[str, Any], one: Path) -> None:
    """It raises its own error for them."""
    import comfy.sd

    unreadable = {name: tensor.to(META) for name, tensor in load_file(one).items()}
    for function in FUNCTIONS[:2]:
        with pytest.raises(KeyError, match=r"img_in\.proj\.weight"):
            getattr(comfy.sd, function)(dict(unreadable))


# ---- more than one pack, and newer versions of ComfyUI


@pytest.fixture
def second_copy() -> Iterator[Any]:
    """`core_loaders` of another copy of the pack."""
    path = ROOT / "ovis_core" / "__init__.py"
    spec = importlib.util.spec_from_file_location("second_core", path, submodule_search_locations=[str(path.parent)])
    package = sys.modules["second_core"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    yield importlib.import_module("second_core.native.wrapped_core.core_loaders")
    for name in [name for name in sys.modules if name.split(".")[0] == "second_core"]:
        del sys.modules[name]


def test_they_are_wrapped_once(core: dict[str, Any], second_copy: Any, parts: dict[str, Path]) -> None:
    import comfy.sd

    from ovis_core.native.wrapped_core import core_loaders

    wrapped = {name: getattr(comfy.sd, name) for name in FUNCTIONS}
    assert all(wrapped[name].__wrapped__ is core[name] for name in FUNCTIONS)
    assert type(from_parts(parts)[0].model).__module__ == "ovis_core.native.model"
    for copy in (second_copy, second_copy, core_loaders, second_copy):
        copy.register()
        assert {name: getattr(comfy.sd, name) for name in FUNCTIONS} == wrapped
    # ComfyUI takes the nodes of the copy that it loads last.
    model, clip = from_parts(parts)
    assert type(model.model).__module__ == "second_core.native.model"
    assert type(clip.cond_stage_model).__module__ == "second_core.native.text_model"


def test_tables_of_lora_names_are_wrapped_once(monkeypatch: pytest.MonkeyPatch, one: Path) -> None:
    import comfy.lora

    from ovis_core.native.wrapped_core import lora_keys

    tables = ("model_lora_keys_unet", "model_lora_keys_clip")
    for name in tables:
        monkeypatch.setattr(comfy.lora, name, getattr(comfy.lora, name))  # to be undone
    lora_keys.register()
    wrapped = [getattr(comfy.lora, name) for name in tables]
    lora_keys.register()
    assert [getattr(comfy.lora, name) for name in tables] == wrapped
    model, clip, _ = from_checkpoint(one)
    key = "double_blocks.0.img_attn.qkv"
    assert comfy.lora.model_lora_keys_unet(model.model, {})[f"transformer.{key}"] == f"diffusion_model.{key}.weight"
    key = "llm.model.layers.0.self_attn.q_proj"
    assert comfy.lora.model_lora_keys_clip(model=clip.cond_stage_model, key_map={})[key] == f"{key}.weight"


def test_another_pack_s_wrapper_stays(monkeypatch: pytest.MonkeyPatch, parts: dict[str, Path]) -> None:
    import comfy.sd

    from ovis_core.native.wrapped_core import core_loaders

    ours = comfy.sd.load_diffusion_model_state_dict
    calls = []

    @wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return ours(*args, **kwargs)

    monkeypatch.setattr(comfy.sd, "load_diffusion_model_state_dict", theirs)
    core_loaders.register()
    assert comfy.sd.load_diffusion_model_state_dict is theirs
    assert from_parts(parts)[0].model.diffusion_model
    assert len(calls) == 1


def test_a_comfyui_that_knows_ovis_u1(monkeypatch: pytest.MonkeyPatch, one: Path) -> None:
    """Core's functions get the file, here with an error, because this ComfyUI does not know it."""
    import comfy.sd
    import comfy.supported_models
    import comfy.supported_models_base

    class OvisU1(comfy.supported_models_base.BASE):
        unet_config = {"image_model": "ovis_u1"}

    monkeypatch.setattr(comfy.supported_models, "models", [*comfy.supported_models.models, OvisU1])
    for load in (comfy.sd.load_checkpoint_guess_config, comfy.sd.load_diffusion_model):
        with pytest.raises(KeyError, match=r"img_in\.proj\.weight"):
            load(str(one))
