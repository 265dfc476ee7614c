"""Weights in every supported form, in a running ComfyUI."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from comfy_prompt import PromptFailed, PromptRejected
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS, ON_GPU
from helpers.graphs import Graph, saved_latent, text_to_image
from helpers.headers import misplaced
from helpers.tokenizer_files import write_tokenizer

MAPS = Path("/proc/self/maps")
CONFIG_TENSOR = "ovis_u1.config.json"  # name of the tensor with the config in files of parts


@pytest.fixture(scope="module")
def saved(server: ComfyServer, info: dict[str, Any]) -> dict[str, Path]:
    """Files that core's nodes wrote into ComfyUI's folders: kind -> file."""
    graph = text_to_image(info)
    model, clip, vae = (graph.out("OvisU1Loader", slot) for slot in range(3))
    graph.remove("OvisU1Sampler", "OvisU1TextEncode", "OvisU1Decode", "SaveImage", "EmptyLatentImage")
    graph.add("CheckpointSave", model=model, clip=clip, vae=vae, filename_prefix="weights/whole")
    graph.add("ModelSave", model=model, filename_prefix="weights/decoder")
    graph.add("CLIPSave", clip=clip, filename_prefix="weights/text")
    graph.add("VAESave", vae=vae, filename_prefix="weights/vae")
    server.run(graph.prompt)
    places = {"whole": "checkpoints", "decoder": "diffusion_models", "text": "text_encoders", "vae": "vae"}
    files = {}
    for name, kind in places.items():
        (written,) = (server.base / "output" / "weights").glob(f"{name}_*.safetensors")
        file = server.base / "models" / kind / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        files[name] = Path(shutil.move(written, file))
    return files


def latent(server: ComfyServer, graph: Graph) -> Any:
    """The graph's image as latents, and pixels of the VAE."""
    node = graph.save_latent(graph.out("OvisU1Sampler"), "weights")
    encoded = graph.add(
        "VAEEncode", pixels=graph.out("OvisU1Decode"), vae=graph.prompt[graph.find("OvisU1Decode")]["inputs"]["vae"]
    )
    again = graph.save_latent([encoded, 0], "weights_vae")
    result = server.run(graph.prompt)
    return torch.stack([saved_latent(server, result, node), saved_latent(server, result, again)])


@pytest.fixture(scope="module")
def expected(server: ComfyServer, info: dict[str, Any]) -> Any:
    return latent(server, text_to_image(info))


@pytest.fixture(scope="module")
def copying(server: ComfyServer, info: dict[str, Any], saved: dict[str, Path]) -> Iterator[ComfyServer]:
    """Another server on the same folders, which keeps no file mapped."""
    args = [*DEVICE_ARGS, "--disable-mmap", "--extra-model-paths-config", str(server.base / "extra_model_paths.yaml")]
    with ComfyServer(server.comfyui, server.base, args) as own:
        yield own


@pytest.fixture(scope="module")
def expected_there(copying: ComfyServer, info: dict[str, Any]) -> Any:
    return latent(copying, text_to_image(info))


@pytest.fixture
def comes_back(server: ComfyServer, copying: ComfyServer, expected: Any, expected_there: Any) -> Callable[..., None]:
    """Checks that a graph gives the release's results, to the last bit if weights are copied.

    Mapped weights have the alignment of their file, and on some CPUs that changes the order of sums.
    """

    def check(graph: Graph) -> None:
        assert torch.equal(latent(copying, graph.copy()), expected_there)
        made = latent(server, graph)
        assert float((made - expected).norm() / expected.norm()) < 1e-5

    return check


def parts(graph: Graph, **inputs: Any) -> Graph:
    """`graph` with Ovis-U1 Load Parts in place of the loader."""
    names = {"diffusion_model_name": "decoder", "text_encoder_name": "text", "vae_name": "vae"}
    node = graph.prompt[graph.find("OvisU1Loader")]
    node["class_type"] = "OvisU1LoadParts"
    node["inputs"] = {
        **{key: f"{name}.safetensors" for key, name in names.items()},
        "weight_dtype": "default",
        **inputs,
    }
    return graph


def test_checkpoint_saved_by_core_loads(
    server: ComfyServer, info: dict[str, Any], saved: dict[str, Path], comes_back: Callable[..., None]
) -> None:
    comes_back(text_to_image(info).set("OvisU1Loader", model_name="checkpoints/whole.safetensors"))
    shown = server.object_info("OvisU1Loader")["input"]["required"]["model_name"]
    options = shown[0] if isinstance(shown[0], list) else shown[1]["options"]
    assert {"tiny", "checkpoints/whole.safetensors"} <= set(options)


def test_saved_checkpoint_has_every_tensor(saved: dict[str, Path], weights: dict[str, Any]) -> None:
    whole = load_file(saved["whole"])
    for name, tensor in weights.items():
        if name.startswith("visual_generator.vae."):
            continue
        there = name.replace("visual_generator.backbone.", "model.diffusion_model.")
        there = there if there != name else f"text_encoders.{name}"
        assert torch.equal(whole.pop(there), tensor), name
    left = {name for name in whole if not name.startswith("first_stage_model.")}
    assert left == {f"model.diffusion_model.{CONFIG_TENSOR}", f"text_encoders.{CONFIG_TENSOR}"}


def test_tensors_in_saved_files_are_aligned(saved: dict[str, Path]) -> None:
    for file in saved.values():
        assert misplaced(file) == []


def test_parts_saved_by_core_load(info: dict[str, Any], comes_back: Callable[..., None]) -> None:
    comes_back(parts(text_to_image(info)))


def test_parts_load_from_a_complete_checkpoint_and_a_diffusers_vae(
    server: ComfyServer,
    info: dict[str, Any],
    saved: dict[str, Path],
    weights: dict[str, Any],
    comes_back: Callable[..., None],
) -> None:
    """The text encoder of a complete checkpoint, and a VAE with diffusers' names."""
    models = server.base / "models"
    (models / "text_encoders" / "whole.safetensors").symlink_to(saved["whole"])
    prefix = "visual_generator.vae."
    vae = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    save_file(vae, models / "vae" / "diffusers.safetensors")
    comes_back(parts(text_to_image(info), text_encoder_name="whole.safetensors", vae_name="diffusers.safetensors"))


def test_saved_checkpoint_contains_the_tokenizer(
    server: ComfyServer, release: Path, comfyui: Path, tmp_path: Path
) -> None:
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model, open_parts

    own = Path(shutil.copytree(release, tmp_path / "own"))
    write_tokenizer(own, comfyui / "comfy" / "text_encoders" / "qwen25_tokenizer")
    model, clip, vae = load(open_model(own))
    file = tmp_path / "whole.safetensors"
    import comfy.sd

    comfy.sd.save_checkpoint(str(file), model, clip, vae)
    checkpoint = open_parts(file, file, file)
    assert checkpoint.tokenizer["merges.txt"] == (own / "merges.txt").read_bytes()
    text = "snow \u96ea <|im_end|>"
    again = load(checkpoint)[1]
    assert again.tokenizer.tokenizer.encode([text]) == clip.tokenizer.tokenizer.encode([text])
    assert again.get_sd().keys() == clip.get_sd().keys()


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp8_e4m3fn"])
def test_weight_dtypes_change_results_slightly(
    server: ComfyServer, info: dict[str, Any], expected: Any, name: str
) -> None:
    made = latent(server, text_to_image(info).set("OvisU1Loader", weight_dtype=name))
    moved = float((made[0] - expected[0]).norm() / expected[0].norm())
    assert 1e-4 < moved < 0.15


def test_errors_name_unusable_part_files(server: ComfyServer, info: dict[str, Any], saved: dict[str, Path]) -> None:
    models = server.base / "models"
    cut = load_file(saved["decoder"])
    cut.pop("model.diffusion_model.single_blocks.0.linear2.weight")
    save_file(cut, models / "diffusion_models" / "cut.safetensors")
    save_file({"a": torch.zeros(1)}, models / "text_encoders" / "other.safetensors")
    bare = {name: tensor for name, tensor in load_file(saved["decoder"]).items() if CONFIG_TENSOR not in name}
    save_file(bare, models / "diffusion_models" / "bare.safetensors")
    short = load_file(saved["vae"])
    short.pop("decoder.mid.block_1.conv1.weight")
    save_file(short, models / "vae" / "short.safetensors")
    (models / "vae" / "page.safetensors").write_text("<!DOCTYPE html>")
    for inputs, words in (
        (
            {"diffusion_model_name": "cut.safetensors"},
            r"cut\.safetensors: missing tensor .*single_blocks\.0\.linear2\.weight",
        ),
        ({"text_encoder_name": "other.safetensors"}, r"other\.safetensors: .*it has no Ovis-U1 text encoder"),
        ({"diffusion_model_name": "bare.safetensors"}, r"bare\.safetensors.*do not match|has shape"),
        ({"vae_name": "short.safetensors"}, r"short\.safetensors: missing tensor decoder\.mid\.block_1\.conv1\.weight"),
        ({"vae_name": "page.safetensors"}, r"page\.safetensors is a web page"),
    ):
        with pytest.raises((PromptFailed, PromptRejected), match=words):
            server.run(parts(text_to_image(info), **inputs).prompt)
    assert server.run(parts(text_to_image(info, seed=99)).prompt).error is None


def test_error_for_a_vae_of_the_wrong_shape(saved: dict[str, Path], comfyui: Path, tmp_path: Path) -> None:
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_parts
    from ovis_core.weights.safetensors_file import CheckpointError

    name, file = "decoder.conv_out.weight", tmp_path / "vae.safetensors"
    tensors = load_file(saved["vae"])
    tensors[name] = tensors[name][:2].contiguous()
    save_file(tensors, file)
    words = r"vae\.safetensors: expected an SDXL VAE, got a VAE of other shapes \(size mismatch"
    with pytest.raises(CheckpointError, match=words) as caught:
        load(open_parts(saved["decoder"], saved["text"], file))
    assert len(str(caught.value).splitlines()) == 1


def mapped(server: ComfyServer) -> set[str]:
    """Names of the weight files that the server's process has mapped."""
    lines = Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8").splitlines()
    return {Path(line.split(maxsplit=5)[-1]).name for line in lines if ".safetensors" in line}


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped this way")
@pytest.mark.parametrize("form", ["a release", "one file", "parts", "in 8 bits", "scaled"])
def test_disable_mmap_leaves_no_file_mapped(
    server: ComfyServer, copying: ComfyServer, info: dict[str, Any], saved: dict[str, Path], scaled: Path, form: str
) -> None:
    """No file of the model stays mapped."""
    graph = text_to_image(info)
    if form == "parts":
        graph = parts(graph)
    elif form == "in 8 bits":
        graph.set("OvisU1Loader", weight_dtype="fp8_e4m3fn")
    elif form != "a release":
        file = saved["whole"] if form == "one file" else scaled
        graph.set("OvisU1Loader", model_name=f"checkpoints/{file.name}")
    server.run(graph.copy().prompt)
    if form != "in 8 bits" and not ON_GPU:
        assert mapped(server), "without the flag they are, on a CPU"
    copying.run(graph.prompt)
    assert mapped(copying) == set()


@pytest.fixture(scope="module")
def scaled(server: ComfyServer, release: Path) -> Path:
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.conversion import write_one
    from ovis_core.weights.precision import QUANTIZED_PRECISIONS

    file = server.base / "models" / "checkpoints" / "scaled.safetensors"
    write_one(open_model(release), file, QUANTIZED_PRECISIONS["fp8_scaled"])
    return file
