"""No tensor that a patch, an override or a hook received is overwritten."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close

Kept = list[tuple[Tensor, Tensor]]


def keep(kept: Kept, *tensors: Any) -> None:
    kept.extend((tensor, tensor.clone()) for tensor in tensors if isinstance(tensor, Tensor))


def override(kept: Kept) -> dict[str, Any]:
    def attend(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        out = function(*args, **kwargs)
        keep(kept, *args, out)
        return out

    return {"optimized_attention_override": attend}


def attention_patches(kept: Kept) -> dict[str, Any]:
    def before(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, attn_mask: Any, extra_options: Any) -> dict[str, Any]:
        keep(kept, q, k, v, pe, attn_mask)
        return {}

    return {"patches": {"attn1_patch": [before]}}


def output_patch(kept: Kept) -> dict[str, Any]:
    def after(out: Tensor, extra_options: Any) -> Tensor:
        keep(kept, out)
        return out

    return {"patches": {"attn1_output_patch": [after]}}


def input_patch(kept: Kept) -> dict[str, Any]:
    def after(args: dict[str, Any]) -> dict[str, Any]:
        keep(kept, *args.values())
        return args

    return {"patches": {"post_input": [after]}}


def blocks(kept: Kept) -> dict[str, Any]:
    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        keep(kept, *args.values())
        out = extra["original_block"](args)
        keep(kept, *out.values())
        return out

    return {
        "patches_replace": {"dit": {(kind, i): replaced for kind in ("double_block", "single_block") for i in (0, 1)}}
    }


def nothing(kept: Kept) -> dict[str, Any]:
    return {}


WAYS = [override, attention_patches, output_patch, input_patch, blocks]


@torch.inference_mode()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("length", [None, 5])
def test_tensors_kept_by_patches_are_not_overwritten(loaded: tuple[Any, ...], way: Any, length: int | None) -> None:
    kept: Kept = []
    plain = run(loaded, {}, length)
    out = run(loaded, way(kept), length)
    assert len(kept) >= 4
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
    close(out, plain, 1e-6)


@torch.inference_mode()
def test_padded_text_has_no_effect(loaded: tuple[Any, ...]) -> None:
    close(run(loaded, {}, 5), run(loaded, {}, cut=5), 1e-5)
    assert not torch.allclose(run(loaded, {}, 5), run(loaded, {}), atol=1e-3)


@torch.inference_mode()
def test_tensors_kept_by_hooks_are_not_overwritten(loaded: tuple[Any, ...]) -> None:
    """Torch's hooks, on every layer."""
    kept: Kept = []
    network = loaded[0].model.diffusion_model
    plain = run(loaded, {})
    with ExitStack() as hooks:
        for module in network.modules():
            for added in (
                module.register_forward_hook(lambda module, inputs, out: keep(kept, *inputs, out)),
                module.register_forward_pre_hook(lambda module, inputs: keep(kept, *inputs)),
            ):
                hooks.callback(added.remove)
        out = run(loaded, {})
    assert len(kept) > 100
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)
    close(out, plain, 1e-6)


@torch.inference_mode()
def test_activations_are_computed_in_place_without_patches(loaded: tuple[Any, ...]) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        in_place = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.in_place += function is torch.ops.aten.gelu_.default
            return function(*args, **(kwargs or {}))

    config = loaded[0].model.diffusion_model.config
    with Count() as count:
        run(loaded, {})
    assert count.in_place == 2 * config.depth + config.depth_single_blocks


def run(loaded: tuple[Any, ...], options: dict[str, Any], length: int | None = None, cut: int | None = None) -> Tensor:
    """One pass of the decoder. length: only so many text tokens count; cut: the text is cut to so many tokens."""
    generator = torch.Generator().manual_seed(2)
    model = loaded[0].model
    context = torch.randn(1, 9, model.diffusion_model.config.context_in_dim, generator=generator)
    latent = torch.randn(1, 4, 8, 12, generator=generator)
    tokens, vector = model.refine(context, torch.device("cpu"))
    lengths = None if length is None else torch.tensor([length])
    return model.diffusion_model(
        latent,
        torch.tensor([0.5]),
        tokens[:, :cut],
        vector,
        [latent],
        transformer_options=options,
        text_lengths=lengths,
    )
