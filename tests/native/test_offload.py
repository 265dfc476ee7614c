"""Partial loading: some weights stay in RAM and are moved and patched at each use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import make_checkpoint
from helpers.compare import close
from ovis_core.weights import layout
from ovis_core.weights.components import DECODER, TEXT
from ovis_core.weights.lazy_tensors import LazyTensor
from ovis_core.weights.precision import LARGE

CPU = torch.device("cpu")
ENOUGH = 1 << 40  # bytes


def low_rank(patcher: Any, prefix: str) -> dict[str, tuple[str, tuple[Tensor]]]:
    """A change of every large matrix."""
    generator = torch.Generator().manual_seed(3)
    patches = {}
    for name, weight in patcher.model.state_dict().items():
        if weight.ndim == 2 and LARGE.search(name.removeprefix(prefix)):
            down, up = (torch.randn(4, n, generator=generator) for n in weight.shape[::-1])
            patches[name] = ("diff", (0.02 * up.T @ down,))
    assert len(patches) > 20
    return patches


def layers(patcher: Any) -> dict[str, nn.Module]:
    return {name: module for name, module in patcher.model.named_modules() if hasattr(module, "comfy_cast_weights")}


def moved_bytes(patcher: Any) -> int:
    """Bytes of the layers that ComfyUI has moved to the device and patched there."""
    found = [module for module in layers(patcher).values() if getattr(module, "comfy_patched_weights", False)]
    return sum(weight.nbytes for module in found for weight in module.parameters(recurse=False))


@pytest.fixture(params=["decoder", "text"])
def part(request: pytest.FixtureRequest, comfyui: Path, config: Any, release: Path) -> Any:
    """A patcher as its builder leaves it, the prefix of its weights, and what its network computes.

    The layers are larger than the small model's and the vocabulary is small, so that no layer is a large part of the
    model.
    """
    from ovis_core.native.clip import build_clip
    from ovis_core.native.layers.network_weights import prepare_weights
    from ovis_core.native.model_patcher import build_model

    generator = torch.Generator().manual_seed(1)
    if request.param == "decoder":
        decoder = dataclasses.replace(config.decoder, depth=3, depth_single_blocks=6)
        shapes = layout.decoder_shapes(decoder)
        patched = build_model(decoder, prepare_weights(DECODER, random(shapes)))
        latent, context = torch.randn(1, 4, 8, 12, generator=generator), torch.randn(1, 9, 128, generator=generator)

        def compute() -> Tensor:
            tokens, vector = patched.model.refine(context, CPU)
            return patched.model.diffusion_model(latent, torch.tensor([0.5]), tokens, vector)

        return patched, "diffusion_model.", compute
    language = dataclasses.replace(config.language, vocab_size=300, num_hidden_layers=12)
    text = dataclasses.replace(config, language=language)
    clip = build_clip(text, prepare_weights(TEXT, random(layout.text_shapes(language, config.vision))), None)
    return clip.patcher, "", lambda: clip.cond_stage_model.condition(list(range(20)), CPU, torch.float32)


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
    return {
        name: LazyTensor.of(torch.from_numpy(make_checkpoint.tensor(name, shape))) for name, shape in shapes.items()
    }


@torch.no_grad()
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_lora_with_a_small_memory_budget(comfyui: Path, part: Any, share: float) -> None:
    patched, prefix, compute = part
    plain = compute()
    patched.add_patches(low_rank(patched, prefix), 1.0)
    patched.partially_load(CPU, ENOUGH)
    whole = compute()
    assert moved_bytes(patched) == pytest.approx(patched.model_size(), rel=0.1)
    patched.detach()
    assert float((whole - plain).norm() / plain.norm()) > 0.05

    budget = max(1, int(share * patched.model_size()))
    patched.partially_load(CPU, budget)
    moved = moved_bytes(patched)
    assert moved <= budget
    assert patched.loaded_size() <= budget
    assert moved >= 0.6 * budget or share == 0
    behind = [name for name, layer in layers(patched).items() if len(getattr(layer, "weight_function", ())) > 0]
    assert len(behind) > 5
    close(compute(), whole, 2e-6)
    # More of it, then less.
    freed = patched.partially_unload(CPU, moved // 2) if moved else 0
    assert moved_bytes(patched) <= moved - freed
    close(compute(), whole, 2e-6)
    patched.detach()
    assert torch.equal(compute(), plain)


def load_whole(patcher: Any) -> None:
    """Loads it completely, as ComfyUI does with enough memory, and unloads it."""
    patcher.partially_load(CPU, ENOUGH)
    patcher.detach()


def nothing(patcher: Any) -> None:
    """Leaves it as it was built; ComfyUI loads a text encoder that is made on its device."""


def once(patcher: Any) -> None:
    load_whole(patcher)


def with_compute_dtype(patcher: Any) -> None:
    """Core's ModelComputeDtype, on a clone."""
    if "manual_cast_dtype" not in patcher.object_patches and not hasattr(patcher.model, "manual_cast_dtype"):
        pytest.skip("this ComfyUI sets no compute dtype for text encoders")
    clone = patcher.clone()
    clone.set_model_compute_dtype(torch.float32)
    load_whole(clone)


def with_compute_dtype_then_without(patcher: Any) -> None:
    with_compute_dtype(patcher)
    load_whole(patcher)


def in_parts(patcher: Any) -> None:
    patcher.partially_load(CPU, patcher.model_size() // 2)
    patcher.partially_load(CPU, ENOUGH)
    patcher.detach()


def with_another_lora(patcher: Any) -> None:
    clone = patcher.clone()
    key = next(name for name, weight in patcher.model.state_dict().items() if weight.ndim == 2)
    clone.add_patches({key: ("diff", (torch.ones_like(patcher.model.state_dict()[key]),))}, 1.0)
    clone.partially_load(CPU, patcher.model_size() // 2)
    load_whole(clone)


@torch.no_grad()
@pytest.mark.parametrize(
    "loaded_before", [nothing, once, with_compute_dtype, with_compute_dtype_then_without, in_parts, with_another_lora]
)
def test_lora_acts_after_any_earlier_load(comfyui: Path, part: Any, loaded_before: Callable[[Any], None]) -> None:
    """A partial load patches every layer that stays in RAM; the result equals that of merged weights."""
    patcher, prefix, compute = part
    casts = {name: layer.comfy_cast_weights for name, layer in layers(patcher).items()}
    plain = compute()
    loaded_before(patcher)
    patched = patcher.clone()
    patches = low_rank(patched, prefix)
    patched.add_patches(patches, 1.0)
    patched.partially_load(CPU, patcher.model_size() // 3)
    named = layers(patched)
    for key in patches:
        layer = named[key.removesuffix(".weight")]
        assert getattr(layer, "comfy_patched_weights", False) or len(layer.weight_function) == 1, key
    found = compute()
    patched.detach()
    assert torch.equal(compute(), plain)
    with merged(patcher, patches):
        close(found, compute(), 2e-6)
    assert float((found - plain).norm() / plain.norm()) > 0.05
    # No additional layer casts its weights, which takes time.
    patcher.partially_load(CPU, ENOUGH)
    assert {name: layer.comfy_cast_weights for name, layer in layers(patcher).items()} == casts


@torch.no_grad()
def test_hook_acts_after_any_earlier_load(comfyui: Path, part: Any) -> None:
    import comfy.hooks

    patcher, prefix, compute = part
    plain = compute()
    with_compute_dtype(patcher)
    patches = low_rank(patcher, prefix)
    hook = comfy.hooks.WeightHook()
    hook.weights = patches
    hook.need_weight_init = False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    clone = patcher.clone()
    clone.add_hook_patches(hook, patches, 1.0)
    clone.partially_load(CPU, patcher.model_size() // 3)
    clone.apply_hooks(group)
    found = compute()
    clone.unpatch_hooks()
    assert torch.equal(compute(), plain)
    clone.detach()
    with merged(patcher, patches):
        close(found, compute(), 2e-6)


@torch.no_grad()
def test_vae_patch_acts_after_any_earlier_load(comfyui: Path, loaded: tuple[Any, ...]) -> None:
    patcher, image = loaded[2].patcher, torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    plain = loaded[2].encode(image)
    forced = patcher.clone()
    forced.force_cast_weights = True
    patcher.detach()
    load_whole(forced)
    changed = patcher.clone()
    weights = {name: w for name, w in patcher.model.state_dict().items() if w.ndim == 4 and "conv" in name}
    changed.add_patches({name: ("diff", (0.1 * weight,)) for name, weight in weights.items()}, 1.0)
    changed.partially_load(CPU, patcher.model_size() // 3)
    named = layers(changed)
    for key in weights:
        layer = named[key.removesuffix(".weight")]
        assert getattr(layer, "comfy_patched_weights", False) or len(layer.weight_function) == 1, key
    changed.detach()
    assert torch.equal(loaded[2].encode(image), plain)


@contextmanager
def merged(patcher: Any, patches: dict[str, tuple[str, tuple[Tensor]]]) -> Iterator[None]:
    """A context in which the patches are merged into the weights."""
    weights = patcher.model.state_dict()
    for key, (_, (change,)) in patches.items():
        weights[key].add_(change)
    try:
        yield
    finally:
        for key, (_, (change,)) in patches.items():
            weights[key].sub_(change)


def test_almost_all_weights_can_be_offloaded(comfyui: Path, loaded: tuple[Any, Any, Any]) -> None:
    """All but a few thousandths of the weights are in layers that ComfyUI can leave in RAM."""
    for patcher in (loaded[0], loaded[1].patcher):
        reached = sum(w.nbytes for layer in layers(patcher).values() for w in layer.parameters(recurse=False))
        assert reached > 0.99 * patcher.model_size()
