"""MODEL, CLIP and VAE in ComfyUI, compared with the authors' results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close

MAPS = Path("/proc/self/maps")
SIZE = {"width": 128, "height": 96}


@pytest.fixture(scope="module")
def conditions(loaded: tuple[Any, Any, Any]) -> tuple[Any, Any]:
    from ovis_core.native.conditions import text_to_image

    return text_to_image(loaded[1], "a cute cat", "", **SIZE)


def test_conditions(conditions: tuple[Any, Any], tensors: dict[str, Tensor]) -> None:
    positive, negative = conditions
    close(positive[0][0], tensors["cond/t2i"])
    close(negative[0][0], tensors["cond/uncond"])
    assert positive[0][1]["pooled_output"] is None


def test_core_text_encode_is_the_text_to_image_condition(loaded: tuple[Any, Any, Any]) -> None:
    from ovis_core.native.conditions import text_to_image

    clip = loaded[1]
    own = text_to_image(clip, "a cute cat", "", 1024, 1024)
    for text, expected in zip(("a cute cat", ""), own, strict=True):
        core = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        assert torch.equal(core[0][0], expected[0][0])


def test_refine(loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]) -> None:
    from ovis_core.native.model import REFINED
    from ovis_core.native.refining import refine

    once = refine(loaded[0], conditions[0])
    close(once[0][0], tensors["refiner/t2i/tokens"])
    close(once[0][1]["pooled_output"], tensors["refiner/t2i/vector"])
    assert once[0][1][REFINED]
    assert REFINED not in conditions[0][0][1]
    twice = refine(loaded[0], once)
    assert twice[0][0] is once[0][0]
    assert twice[0][1] is once[0][1]


def sample(model: Any, positive: Any, negative: Any, noise: Tensor, steps: int) -> Tensor:
    """Final latent in model space, from noise given as such."""
    import comfy.samplers

    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sigmas_for

    empty = torch.zeros_like(noise)
    guider = OvisGuider(model, positive, negative, txt_cfg=5.0)
    latent = guider.sample(noise, empty, comfy.samplers.sampler_object("euler"), sigmas_for(model, empty, steps, 1.0))
    return model.model.process_latent_in(latent)


def test_final_latent_and_image(
    loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    model, _, vae = loaded
    latent = sample(model, *conditions, tensors["t2i/noise"], steps=4)
    close(latent, tensors["t2i/final_latent"], 1e-4)
    close(vae.decode(model.model.process_latent_out(latent)), tensors["t2i/image"], 1e-4)


def test_refined_conditions_sample_the_same(
    loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    from ovis_core.native.refining import refine

    model = loaded[0]
    refined = [refine(model, condition) for condition in conditions]
    noise = tensors["t2i/noise"]
    assert torch.equal(sample(model, *refined, noise, 2), sample(model, *conditions, noise, 2))


@torch.inference_mode()  # as ComfyUI runs nodes
def test_the_refiner_runs_once_per_condition(
    loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    model = loaded[0]
    calls: list[int] = []
    network = model.model.diffusion_model
    hooks = [
        network.txt_in.register_forward_hook(lambda *_: calls.append(0)),
        network.final_layer.register_forward_hook(lambda *_: calls.append(1)),
    ]
    try:
        sample(model, *conditions, tensors["t2i/noise"], steps=5)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls.count(0) == 2
    assert calls.count(1) == 10


@torch.inference_mode()
def test_branches_of_equal_length_run_as_one_batch(loaded: tuple[Any, Any, Any], tensors: dict[str, Tensor]) -> None:
    from ovis_core.native.conditions import text_to_image

    model, noise = loaded[0], tensors["t2i/noise"]
    conditions = text_to_image(loaded[1], "a cute cat", "a cute dog", **SIZE)
    assert conditions[0][0][0].shape == conditions[1][0][0].shape
    sizes: list[int] = []
    layer = model.model.diffusion_model.final_layer
    hook = layer.register_forward_hook(lambda _module, _inputs, out: sizes.append(out.shape[0]))
    try:
        sample(model, *conditions, noise, steps=3)
    finally:
        hook.remove()
    assert sizes == [2, 2, 2]


def test_weights_are_cast_and_offloaded_by_comfyui(loaded: tuple[Any, Any, Any]) -> None:
    """Every weight is in a layer of ComfyUI, except two small ones that are moved to their input."""
    model, clip, _ = loaded
    bare = set()
    for root in (model.model.diffusion_model, clip.cond_stage_model):
        for name, module in root.named_modules():
            if not hasattr(module, "comfy_cast_weights"):
                bare |= {f"{name}.{parameter}" for parameter, _ in module.named_parameters(recurse=False)}
    assert bare == {"txt_in.cls_token", "visual_tokenizer.backbone.preprocessor.pos_embed"}


def test_every_weight_of_the_release_is_loaded(loaded: tuple[Any, Any, Any], weights: dict[str, Tensor]) -> None:
    from ovis_core.weights import layout

    model, clip, _ = loaded
    decoder = model.model.diffusion_model.state_dict()
    text = clip.cond_stage_model.state_dict()
    for name, value in weights.items():
        if name.startswith(layout.DECODER):
            own = name.removeprefix(layout.DECODER).replace("_norm.scale", "_norm.weight")
            assert torch.equal(decoder.pop(own), value), name
        elif not name.startswith(layout.VAE):
            assert torch.equal(text.pop(name), value), name
    assert not decoder
    assert not text


def test_partly_offloaded_model_computes_the_same(
    comfyui: Path, loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    """With memory for half of the decoder, the other layers stay in RAM and are cast at each use."""
    model = loaded[0]
    whole = sample(model, *conditions, tensors["t2i/noise"], 2)
    patcher = model.clone()
    patcher.load(patcher.load_device, lowvram_model_memory=model.model_size() // 2, force_patch_weights=True)
    try:
        left = [m for m in model.model.diffusion_model.modules() if getattr(m, "comfy_cast_weights", False)]
        assert left
        from ovis_core.native.refining import refine

        y = refine(patcher, conditions[0])
        x = tensors["t2i/noise"]
        velocity = model.model.diffusion_model(x, torch.tensor([0.73]), y[0][0], y[0][1]["pooled_output"])
        close(velocity, tensors["backbone/t2i/t0.73"])
    finally:
        patcher.detach()
    assert torch.equal(sample(model, *conditions, tensors["t2i/noise"], 2), whole)


def test_bfloat16_weights(
    comfyui: Path, raw_config: dict[str, Any], tmp_path: Path, conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    """Weights as in the release. A CPU computes in float32, so only the rounding of the weights has an effect."""
    import make_checkpoint
    from ovis_core.native.conditions import text_to_image
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model

    model, clip, _ = load(
        open_model(make_checkpoint.write_release(tmp_path / "bf16", raw_config, dtype="BF16", shards=3))
    )
    assert clip.cond_stage_model.llm.model.norm.weight.dtype == torch.bfloat16
    condition, _ = text_to_image(clip, "a cute cat", "", **SIZE)
    close(condition[0][0], tensors["cond/t2i"], 2e-2)
    close(sample(model, *conditions, tensors["t2i/noise"], 4), tensors["t2i/final_latent"], 1e-2)


def test_new_copies_of_patchers_have_the_same_weights(loaded: tuple[Any, Any, Any]) -> None:
    """The function that ComfyUI calls for new copies of the weights."""
    model, clip, vae = loaded
    for patcher in (model, clip.patcher, vae.patcher):
        function, arguments = patcher.cached_patcher_init
        fresh = function(*arguments, disable_dynamic=True)
        assert fresh.model is not patcher.model
        own, new = patcher.model.state_dict(), fresh.model.state_dict()
        assert own.keys() == new.keys()
        # `model_sampling` is patched for each run, and not a weight.
        changed = [name for name in own if not torch.equal(own[name], new[name])]
        assert set(changed) <= {"model_sampling.sigmas"}


def test_core_patches_reach_the_decoder(
    loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    """Wrappers, block replacements and attention patches, as core nodes set them."""
    from comfy.patcher_extension import WrappersMP

    noise, model = tensors["t2i/noise"], loaded[0]
    plain = sample(model, *conditions, noise, 2)
    seen: list[Any] = []

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append("wrapper")
        return executor(*args, **kwargs)

    def block(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append(args["transformer_options"]["block_type"])
        return extra["original_block"](args)

    def attention(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        seen.append("attention")
        return {"q": q, "k": k, "v": v}

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)
    patched.set_model_patch_replace(block, "dit", "double_block", 1)
    patched.set_model_patch_replace(block, "dit", "single_block", 0)
    patched.set_model_patch(attention, "attn1_patch")
    assert torch.equal(sample(patched, *conditions, noise, 2), plain)
    passes = 4  # two steps, two branches
    assert {name: seen.count(name) for name in set(seen)} == {
        "wrapper": passes,
        "double": passes,
        "single": passes,
        "attention": passes * 4,
    }

    skipping = model.clone()
    skipping.set_model_patch_replace(lambda args, extra: args, "dit", "single_block", 1)
    assert not torch.allclose(sample(skipping, *conditions, noise, 2), plain, atol=1e-3)


def test_errors_for_batches_of_prompts_and_foreign_tokens(loaded: tuple[Any, Any, Any]) -> None:
    clip = loaded[1]
    (one,), (other,) = (clip.tokenize(text)["ovis_u1"] for text in ("a cat", "a cat and a dog"))
    with pytest.raises(ValueError, match="expected prompts of equal length in a batch"):
        clip.encode_from_tokens({"ovis_u1": [one, other]})
    with pytest.raises(ValueError, match="expected tokens of this CLIP"):
        clip.cond_stage_model.encode_token_weights({"l": [[(1, 1.0)]]})


def test_each_tensor_is_read_once(release: Path, comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter

    from ovis_core.native.loading import load
    from ovis_core.weights import lazy_tensors
    from ovis_core.weights.checkpoint import open_model

    read: Counter[tuple[Path, str]] = Counter()
    reading = lazy_tensors.TensorReader.__call__

    def counted(self: Any, entry: Any) -> Tensor:
        read[entry.file, entry.name] += 1
        return reading(self, entry)

    monkeypatch.setattr(lazy_tensors.TensorReader, "__call__", counted)
    monkeypatch.setattr(lazy_tensors, "REMAP_EVERY", 1 << 16)
    checkpoint = open_model(release)
    load(checkpoint)
    assert set(read.values()) == {1}
    assert len(read) == sum(len(part.files) for part in checkpoint.components.values())


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux tells what is mapped this way")
def test_without_a_gpu_weights_stay_in_their_file(comfyui: Path, release: Path) -> None:
    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model

    model, clip, _ = load(open_model(release))
    layers = [
        model.model.diffusion_model.double_blocks[0].img_attn.qkv,
        clip.cond_stage_model.llm.blocks[0].mlp.up_proj,
    ]
    for layer in layers:
        assert "tiny/model-" in mapped(layer.weight)
    # Writing into a weight does not change the file.
    weight = layers[0].weight
    before = weight.clone()
    weight.data.add_(1.0)
    again = load(open_model(release))[0].model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    assert torch.equal(again, before)


def test_newer_comfyuis_get_the_path_of_weight_files(
    release: Path, comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their loaders ask storages for their file, and pass the answer to the patcher."""
    import comfy
    import comfy.model_patcher
    import comfy.sd

    from ovis_core.native.loading import load
    from ovis_core.weights.checkpoint import open_model
    from ovis_core.weights.components import DECODER, VAE

    asked: list[set[str]] = []

    class Storage:
        """The module `comfy.storage` of newer versions of ComfyUI."""

        @staticmethod
        def state_dict_fast_disk(state_dict: Any) -> bool:
            paths = {getattr(value.untyped_storage(), "_comfy_source_path", None) for value in state_dict.values()}
            asked.append(paths - {None})
            return True

    class Patcher(comfy.model_patcher.ModelPatcher):
        def __init__(self, *args: Any, fast_disk: bool = False, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.fast_disk = fast_disk

    class Vae(comfy.sd.VAE):
        """Newer versions of ComfyUI ask when they build a VAE."""

        def __init__(self, sd: Any, **kwargs: Any) -> None:
            Storage.state_dict_fast_disk(sd)
            super().__init__(sd=sd, **kwargs)

    monkeypatch.setattr(comfy.sd, "VAE", Vae)
    monkeypatch.setitem(sys.modules, "comfy.storage", Storage)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Patcher, raising=False)
    checkpoint = open_model(release)
    assert load(checkpoint)[0].fast_disk is True
    for kind, paths in ((VAE, asked[0]), (DECODER, asked[-1])):
        assert paths == {os.path.realpath(file) for file in checkpoint.components[kind].files.values()}


def mapped(tensor: Tensor) -> str:
    """The line of the process's maps for a tensor's memory."""
    for line in MAPS.read_text(encoding="ascii").splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line
    return ""


@torch.inference_mode()
def test_wrappers_may_change_their_input(
    loaded: tuple[Any, Any, Any], conditions: tuple[Any, Any], tensors: dict[str, Tensor]
) -> None:
    """As EasyCache does in a step that it skips: in float32, x0 is computed from this input."""
    from comfy.patcher_extension import WrappersMP

    def spoil(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        velocity = executor(x, *args, **kwargs)
        x += 1.0
        return velocity

    model = loaded[0].clone()
    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, spoil)
    noise = tensors["t2i/noise"]
    assert torch.equal(sample(model, *conditions, noise, 2), sample(loaded[0], *conditions, noise, 2))
