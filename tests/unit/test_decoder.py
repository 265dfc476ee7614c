"""Refiner and decoder in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close
from ovis_core.networks.decoder import Decoder, modulated_norm
from ovis_core.networks.packing import pack, unpack
from ovis_core.networks.patches import scaled_positions
from ovis_core.networks.positions import positions
from ovis_core.weights import layout


@pytest.fixture(scope="module")
def decoder(config: Any, weights: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(config.decoder)
    own = {
        name.removeprefix(layout.DECODER): value for name, value in weights.items() if name.startswith(layout.DECODER)
    }
    decoder.load_state_dict({name.replace("_norm.scale", "_norm.weight"): value for name, value in own.items()})
    return decoder.eval().requires_grad_(False)


def test_refiner(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    tokens, pooled = decoder.txt_in(tensors["cond/t2i"])
    close(tokens, tensors["refiner/t2i/tokens"])
    close(pooled, tensors["refiner/t2i/pooled"])
    close(decoder.refine(tensors["cond/t2i"])[1], tensors["refiner/t2i/vector"])


# With gradients no tensor is overwritten; in sampling, tensors that are not used again are.
@pytest.fixture(params=[torch.enable_grad, torch.no_grad, torch.inference_mode], ids=["grad", "no_grad", "inference"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    with request.param():
        yield


@pytest.mark.parametrize("time", ["1.0", "0.73", "0.05"])
def test_velocity(decoder: Decoder, tensors: dict[str, Tensor], mode: None, time: str) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"])
    velocity = decoder(tensors["t2i/noise"], torch.tensor([float(time)]), context, vector)
    close(velocity, tensors[f"backbone/t2i/t{time}"])


def test_scale_rope_scales_positions(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"])

    def velocity(**scaling: float) -> Tensor:
        options = {"rope_options": scaling} if scaling else {}
        return decoder(tensors["t2i/noise"], torch.tensor([0.73]), context, vector, transformer_options=options)

    assert torch.equal(velocity(scale_x=1.0, shift_y=0.0), velocity())
    assert not torch.allclose(velocity(scale_y=0.5), velocity(), atol=1e-3)
    ids = positions(2, ((0, 3, 4), (1, 2, 2)), torch.device("cpu"))
    scaled = scaled_positions(ids, slice(2, 14), {"scale_y": 0.5, "shift_y": 3.0, "shift_x": -1.0, "shift_t": 2.0})
    # As in FLUX: equal steps, starting at the shift.
    assert torch.equal(scaled[2:14, 1].unique(), torch.linspace(3.0, 4.0, 3))
    assert torch.equal(scaled[2:14, 2].unique(), torch.linspace(-1.0, 2.0, 4))
    assert scaled[2:14, 0].unique().tolist() == [2.0]
    assert torch.equal(scaled[:2], ids[:2])
    assert torch.equal(scaled[14:], ids[14:])


@pytest.mark.parametrize("block", [("double_block", 0), ("single_block", 0)])
def test_block_patches_may_omit_transformer_options(
    decoder: Decoder, tensors: dict[str, Tensor], block: tuple[str, int]
) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"])
    given = (tensors["t2i/noise"], torch.tensor([0.73]), context, vector)

    def patch(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        return extra["original_block"]({name: args[name] for name in args if name != "transformer_options"})

    options = {"patches_replace": {"dit": {block: patch}}}
    assert torch.equal(decoder(*given, transformer_options=options), decoder(*given))


def test_images_of_a_batch_may_have_different_times(decoder: Decoder, tensors: dict[str, Tensor], mode: None) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"].expand(2, -1, -1))
    velocity = decoder(tensors["t2i/noise"].expand(2, -1, -1, -1), torch.tensor([0.73, 0.05]), context, vector)
    close(velocity, torch.cat((tensors["backbone/t2i/t0.73"], tensors["backbone/t2i/t0.05"])))


@torch.inference_mode()
def test_inputs_and_tensors_given_to_patches_are_not_changed(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"])
    given = [tensors["t2i/noise"], torch.tensor([0.73]), context, vector]
    before, seen = [value.clone() for value in given], []

    def patch(q: Tensor, k: Tensor, v: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        seen.extend((value, value.clone()) for value in (q, k, v))
        return {"q": q, "k": k, "v": v}

    velocity = decoder(*given, transformer_options={"patches": {"attn1_patch": [patch]}})
    close(velocity, tensors["backbone/t2i/t0.73"])
    assert all(map(torch.equal, given, before))
    assert len(seen) == 3 * (len(decoder.double_blocks) + len(decoder.single_blocks))
    assert all(torch.equal(value, then) for value, then in seen)


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 2])
def test_patches_may_change_positions(decoder: Decoder, tensors: dict[str, Tensor], batch: int) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"].expand(batch, -1, -1))
    given = [tensors["t2i/noise"].expand(batch, -1, -1, -1), torch.full((batch,), 0.73), context, vector]
    before = decoder(*given)

    def turn(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        return {"pe": pe.mul_(0.9)}

    changed = decoder(*given, transformer_options={"patches": {"attn1_patch": [turn]}})
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(decoder(*given), before)


def test_modulated_norm_accepts_float64_and_expanded_inputs() -> None:
    x, shift, factor = torch.randn(1, 5, 8).double(), torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    expected = modulated_norm(x.float(), shift, factor)
    close(modulated_norm(x, shift, factor), expected.double(), 1e-6)
    close(modulated_norm(x.expand(2, -1, -1), shift, factor), expected.double().expand(2, -1, -1), 1e-6)


def test_rotary_tables_work_in_training_after_sampling(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    context, vector = decoder.refine(tensors["cond/t2i"])
    time = torch.tensor([0.73])
    decoder.rotary_tables.clear()
    with torch.inference_mode():
        decoder(tensors["t2i/noise"], time, context, vector)
    learned = context.clone().requires_grad_()
    decoder(tensors["t2i/noise"], time, learned, vector).square().sum().backward()
    assert learned.grad.abs().max() > 0


def test_compiled_code_uses_the_cached_rotary_table(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    """Otherwise it would compute the table's float64 sines again in each rotation."""
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    context, vector = decoder.refine(tensors["edit/cond"])
    given = (tensors["edit/noise"], torch.tensor([0.9]), context, vector, [tensors["edit/ref_latent_mode"]])
    torch._dynamo.reset()
    with torch.no_grad():
        close(torch.compile(decoder, backend=record, fullgraph=True)(*given), tensors["backbone/edit/t0.9"])
    (graph,) = graphs
    # By name: another copy of the pack in this process has an operation of the same name.
    assert sum(str(node.target) == "ovis_u1.rotary_table.default" for node in graph.graph.nodes) == 1
    assert sum(node.target in ("sin", torch.sin) for node in graph.graph.nodes) == 1  # of the time embedding


def test_velocity_with_a_reference(decoder: Decoder, tensors: dict[str, Tensor]) -> None:
    context, vector = decoder.refine(tensors["edit/cond"])
    time, references = torch.tensor([0.9]), [tensors["edit/ref_latent_mode"]]
    velocity = decoder(tensors["edit/noise"], time, context, vector, references)
    close(velocity, tensors["backbone/edit/t0.9"])
    # A second reference takes part, at the next index: which of two comes first makes a difference.
    other = [references[0].flip(-1)]
    one, two = (
        decoder(tensors["edit/noise"], time, context, vector, order)
        for order in (references + other, other + references)
    )
    assert (one - velocity).abs().max() > 1e-3
    assert (one - two).abs().max() > 1e-4


def test_unpack_inverts_pack() -> None:
    latent = torch.randn(2, 4, 7, 10)
    assert pack(latent).shape == (2, 4 * 5, 16)
    assert torch.equal(unpack(pack(latent), 7, 10), latent)
