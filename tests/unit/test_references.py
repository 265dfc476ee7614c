"""Several reference images in the decoder, compared with a straight computation in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu

from helpers.compare import close
from ovis_core.networks.decoder import Decoder
from ovis_core.networks.positions import positions
from ovis_core.special_tokens import Control, Placeholder
from ovis_core.text import prompts
from ovis_core.weights import layout
from ovis_core.weights.config import TIME_WIDTH


class Straight:
    """The decoder from the release's weights, one line a formula: no patches, no caches, nothing overwritten."""

    def __init__(self, config: Any, weights: dict[str, Tensor]) -> None:
        self.config = config
        own = (name for name in weights if name.startswith(layout.DECODER))
        self.weights = {name.removeprefix(layout.DECODER): weights[name].double() for name in own}

    def layer(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def modulation(self, name: str, vec: Tensor, chunks: int) -> list[Tensor]:
        return [*self.layer(name, silu(vec)).chunk(chunks)]

    def heads(self, norms: str, qkv: Tensor) -> list[Tensor]:
        """qkv (L, 3 hidden) -> q and k normed, v, each (heads, L, D)."""
        q, k, v = qkv.view(len(qkv), 3, self.config.num_heads, -1).permute(1, 2, 0, 3)
        q, k = (
            x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.weights[f"{norms}.{name}.scale"]
            for x, name in ((q, "query_norm"), (k, "key_norm"))
        )
        return [q, k, v]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
        """Attention with rotary positions as complex numbers; ids (L, 3)."""
        angles = [
            ids[:, axis, None] * self.config.theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            for axis, dim in enumerate(self.config.axes_dim)
        ]
        turn = torch.polar(torch.ones(1, dtype=torch.float64), torch.cat(angles, dim=-1))
        q, k = (
            torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)
            for x in (q, k)
        )
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(dim=-1)
        return (scores @ v).transpose(0, 1).flatten(1)

    def __call__(self, x: Tensor, t: float, text: Tensor, y: Tensor, references: list[Tensor]) -> Tensor:
        """x (4, H, W), text (L, hidden), y (hidden,), references (4, h, w) -> velocity (4, H, W)."""
        ids, tokens = [torch.zeros(len(text), 3, dtype=torch.float64)], []
        for index, image in enumerate([x, *references]):
            for row in range(image.shape[1] // 2):
                for column in range(image.shape[2] // 2):
                    tokens.append(image[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten())
                    ids.append(torch.tensor([[index, row, column]], dtype=torch.float64))
        img, txt, own = self.layer("img_in", torch.stack(tokens).double()), text.double(), len(text)
        half = torch.arange(TIME_WIDTH // 2, dtype=torch.float64) / (TIME_WIDTH // 2)
        angle = 1000 * t * 10000.0**-half
        time, ids = torch.cat((angle.cos(), angle.sin())), torch.cat(ids)
        vec = self.layer("time_in.out_layer", silu(self.layer("time_in.in_layer", time))) + y.double()

        def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
            return (1 + scale) * layer_norm(x, x.shape[-1:], eps=1e-6) + shift

        for i in range(self.config.depth):
            at = f"double_blocks.{i}"
            joint_shift, joint_scale, joint_gate, shift, scale, gate, own_shift, own_scale, own_gate = self.modulation(
                f"{at}.img_mod.lin", vec, 9
            )
            words = self.modulation(f"{at}.txt_mod.lin", vec, 6)
            alone = self.layer(f"{at}.img_self_attn.qkv", norm(img, own_shift, own_scale))
            alone = self.attend(*self.heads(f"{at}.img_self_attn.norm", alone), ids[own:])
            one = self.heads(f"{at}.txt_attn.norm", self.layer(f"{at}.txt_attn.qkv", norm(txt, *words[:2])))
            two = self.layer(f"{at}.img_attn.qkv", norm(img, joint_shift, joint_scale))
            two = self.heads(f"{at}.img_attn.norm", two)
            both = self.attend(*(torch.cat(pair, dim=1) for pair in zip(one, two, strict=True)), ids)
            img = img + joint_gate * self.layer(f"{at}.img_attn.proj", both[own:])
            img = img + own_gate * self.layer(f"{at}.img_self_attn.proj", alone)
            txt = txt + words[2] * self.layer(f"{at}.txt_attn.proj", both[:own])
            inner = gelu(self.layer(f"{at}.img_mlp.0", norm(img, shift, scale)), approximate="tanh")
            img = img + gate * self.layer(f"{at}.img_mlp.2", inner)
            inner = gelu(self.layer(f"{at}.txt_mlp.0", norm(txt, *words[3:5])), approximate="tanh")
            txt = txt + words[5] * self.layer(f"{at}.txt_mlp.2", inner)

        both = torch.cat((txt, img))
        for i in range(self.config.depth_single_blocks):
            at = f"single_blocks.{i}"
            shift, scale, gate = self.modulation(f"{at}.modulation.lin", vec, 3)
            inner = self.layer(f"{at}.linear1", norm(both, shift, scale))
            qkv, mlp = inner.split([3 * self.config.hidden_size, inner.shape[1] - 3 * self.config.hidden_size], dim=1)
            attended = self.attend(*self.heads(f"{at}.norm", qkv), ids)
            joined = torch.cat((attended, gelu(mlp, approximate="tanh")), dim=1)
            both = both + gate * self.layer(f"{at}.linear2", joined)

        shift, scale = self.modulation("final_layer.adaLN_modulation.1", vec, 2)
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        out = self.layer("final_layer.linear", norm(both[own : own + rows * columns], shift, scale))
        out = out.view(rows, columns, 4, 2, 2).permute(2, 0, 3, 1, 4)
        return out.reshape(x.shape)


@pytest.fixture(scope="module")
def straight(config: Any, weights: dict[str, Tensor]) -> Straight:
    return Straight(config.decoder, weights)


@pytest.fixture(scope="module")
def decoder(config: Any, weights: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(config.decoder)
    own = {name: value for name, value in weights.items() if name.startswith(layout.DECODER)}
    named = {name.removeprefix(layout.DECODER).replace("_norm.scale", "_norm.weight"): own[name] for name in own}
    decoder.load_state_dict(named)
    return decoder.eval().requires_grad_(False)


def references(tensors: dict[str, Tensor], *sizes: tuple[int, int]) -> list[Tensor]:
    """Latents (1, 4, h, w) of the golden reference's mean and deviation."""
    like = tensors["edit/ref_latent_mode"]
    noise = torch.Generator().manual_seed(0)
    return [torch.randn(1, 4, *size, generator=noise) * like.std() + like.mean() for size in sizes]


def test_straight_computation_agrees_with_the_authors(
    straight: Straight, decoder: Decoder, tensors: dict[str, Tensor]
) -> None:
    text, y = decoder.refine(tensors["edit/cond"])
    velocity = straight(tensors["edit/noise"][0], 0.9, text[0], y[0], [tensors["edit/ref_latent_mode"][0]])
    close(velocity[None], tensors["backbone/edit/t0.9"])


@pytest.mark.parametrize("sizes", [[(8, 12), (6, 4)], [(4, 4), (10, 6), (2, 16)]], ids=["two", "three"])
@torch.inference_mode()
def test_references_of_any_size(
    straight: Straight, decoder: Decoder, tensors: dict[str, Tensor], sizes: list[tuple[int, int]]
) -> None:
    text, y = decoder.refine(tensors["edit/cond"])
    x, latents = tensors["edit/noise"], references(tensors, *sizes)
    velocity = decoder(x, torch.tensor([0.7]), text, y, latents)
    close(velocity, straight(x[0], 0.7, text[0], y[0], [latent[0] for latent in latents])[None])
    swapped = decoder(x, torch.tensor([0.7]), text, y, latents[::-1])
    close(swapped, straight(x[0], 0.7, text[0], y[0], [latent[0] for latent in latents[::-1]])[None])
    assert (velocity - swapped).abs().max() > 1e-4


def test_each_reference_has_an_index_on_the_first_axis() -> None:
    ids = positions(3, ((0, 2, 2), (1, 1, 2), (2, 2, 1)), torch.device("cpu"))
    assert ids[:, 0].tolist() == [0.0] * 3 + [0.0] * 4 + [1.0] * 2 + [2.0] * 2
    # Rows and columns start at 0 in each image.
    assert ids[-4:, 1:].tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]


def test_pictures_of_an_instruction_are_numbered_as_in_a_question() -> None:
    assert prompts.about_image(" add a hat ") == prompts.user_turn([Placeholder.IMAGE, "\nadd a hat"])
    pictures = ["Image 1: ", Placeholder.IMAGE, "\n", "Image 2: ", Placeholder.IMAGE, "\n"]
    turn = [Control.TURN_START, "user\n", *pictures, "add a hat", Control.TURN_END, "\n"]
    assert prompts.about_image(" add a hat ", 2) == prompts.question("add a hat", 2) == turn
    assert prompts.unconditional(2) == prompts.about_image(prompts.UNCONDITIONAL, 2)
