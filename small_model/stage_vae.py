"""The VAE: first all of it on crops, then its decoder alone with noise on the latents."""

from __future__ import annotations

import math
import random
from pathlib import Path

import flat_shapes
import torch
from networks import LATENT_SCALE, make_vae
from torch import Tensor, nn
from torch.nn import functional as F
from training import Run, cosine, descend, load_module, set_rate

STEPS = {"vae_whole": 1900, "vae": 700}
SIZES = {"vae_whole": ((0.5, 32, 8), (0.92, 64, 3), (1.0, 128, 1)), "vae": ((0.7, 64, 3), (1.0, 128, 1))}
NOISE = 0.3  # on the latents that the decoder learns from, beside their deviation of 7.7: a sampler's are never exact


def train(folder: Path, scale: float = 1.0) -> None:
    """Both parts."""
    vae = make_vae()
    start_near_identity(vae)
    _train(folder, "vae_whole", vae, list(vae.parameters()), 2e-3, scale)
    whiten(vae)
    for weight in (*vae.encoder.parameters(), *vae.quant_conv.parameters()):
        weight.requires_grad_(False)
    _train(folder, "vae", vae, [weight for weight in vae.parameters() if weight.requires_grad], 1e-3, scale)


def _train(folder: Path, name: str, vae: nn.Module, weights: list[Tensor], rate: float, scale: float) -> None:
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)

    def step(i: int, steps: int) -> dict[str, float]:
        set_rate([optimizer], rate * cosine(i, steps))
        side, count = next((side, count) for share, side, count in SIZES[name] if i < share * steps)
        pictures = crops(count, side) * 2 - 1
        z = vae.encode(pictures).latent_dist.mean
        whole = name == "vae_whole"
        wrong = vae.decode(z + (0.08 if whole else NOISE) * torch.randn_like(z)).sample - pictures
        loss = wrong.abs().mean() + 2 * wrong.square().mean()
        if whole:  # latents of about unit size, which `whiten` then makes exactly so
            spread = (z.square().mean(dim=(0, 2, 3)) - 1).square().mean() + z.mean(dim=(0, 2, 3)).square().mean()
            loss = loss + 1e-3 * spread
        descend(loss, weights, [optimizer])
        return {f"error{side}": wrong.detach().abs().mean().item() / 2}

    Run(folder, name, {"model": vae}, [optimizer]).train(step, round(STEPS[name] * scale))


def crops(count: int, side: int) -> Tensor:
    """Parts of pictures (count, 3, side, side) that mostly show an edge, in 0..1; a quarter in any colours."""
    rng, made = random, []
    for _ in range(count):
        radius, angle = rng.uniform(15, 46), rng.uniform(0, 2 * math.pi)
        shape = flat_shapes.Shape(
            rng.choice(flat_shapes.KINDS), "red", "", "", rng.uniform(30, 98), rng.uniform(30, 98), radius
        )
        reach = rng.uniform(0, 1.25) * radius
        corner = torch.tensor([shape.x + reach * math.cos(angle), shape.y + reach * math.sin(angle)]) - side / 2
        corner = corner.clamp(0, flat_shapes.SIDE - side).round()
        cover = (0.5 - flat_shapes.distance(shape, side, corner)).clamp(0, 1)
        ground, colour = (
            flat_shapes.colour_of(name).view(3, 1, 1) for name in rng.sample(list(flat_shapes.COLOURS), 2)
        )
        if rng.random() < 0.25:
            ground, colour = torch.rand(3, 1, 1), torch.rand(3, 1, 1)
        made.append(ground + cover * (colour - ground))
    return torch.stack(made)


@torch.no_grad()
def start_near_identity(vae: nn.Module) -> None:
    """Residual blocks that add little, sampling that copies, and norms that leave flat colours their size.

    A group of the norm holds two channels, and alone it would erase a flat colour. So every odd channel begins as a
    constant, beside which the even ones keep their size.
    """
    even = torch.eye(64)
    even[1::2] = 0
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            module.weight.mul_(0.05)
            module.bias.zero_()
        if "samplers.0.conv" in name:
            module.weight.mul_(0.1)
            module.bias.zero_()
            module.bias[1::2] = 2.0
            if "down" in name:
                module.weight[:, :, :2, :2] += even[:, :, None, None] / 4
            else:
                module.weight[:, :, 1, 1] += even
    for part, into in ((vae.encoder, 3), (vae.decoder, 4)):
        part.conv_in.weight.mul_(0.1)
        part.conv_in.weight[:, :, 1, 1].normal_(0, into**-0.5)
        part.conv_in.bias.zero_()
        part.conv_in.bias[1::2] = 2.0
        part.conv_in.weight[1::2] = 0
        part.conv_norm_out.weight.fill_(2.0)
        part.conv_norm_out.bias[0::2] = 2.0
        part.conv_norm_out.bias[1::2] = -2.0
        part.conv_out.weight.mul_(0.1)
        part.conv_out.bias.zero_()
        part.conv_out.weight[:, 0::2, 1, 1] += torch.randn(part.conv_out.weight.shape[0], 32) * 32**-0.5
    vae.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
    vae.post_quant_conv.weight.copy_(torch.eye(4)[:, :, None, None])
    vae.quant_conv.bias.zero_()
    vae.post_quant_conv.bias.zero_()


@torch.no_grad()
def whiten(vae: nn.Module) -> None:
    """Folds the latents' mean and deviation into the two 1 x 1 convolutions, so that the model's scale holds."""
    rng = random.Random(5)
    pictures = flat_shapes.draw([flat_shapes.make_scene(rng, False) for _ in range(48)]) * 2 - 1
    z = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(8)])
    mean, factor = z.mean(dim=(0, 2, 3)), 1 / (z.std(dim=(0, 2, 3)) * LATENT_SCALE)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight /= factor.view(1, -1, 1, 1)
    before.weight[:4] *= factor.view(-1, 1, 1, 1)
    before.bias[:4] = (before.bias[:4] - mean) * factor
    before.weight[4:] = 0  # the posterior's deviation: none
    before.bias[4:] = -20


@torch.no_grad()
def to_latents(vae: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, 128, 128) in 0..1 -> latents (B, 4, 16, 16) in the decoder's scale."""
    return torch.cat([vae.encode(part * 2 - 1).latent_dist.mean * LATENT_SCALE for part in pictures.split(8)])


@torch.no_grad()
def to_pictures(vae: nn.Module, latents: Tensor) -> Tensor:
    """The way back."""
    parts = [vae.decode(part / LATENT_SCALE).sample for part in latents.split(8)]
    return (torch.cat(parts).clamp(-1, 1) + 1) / 2


def load(folder: Path) -> nn.Module:
    """The trained VAE."""
    return load_module(folder, "vae", make_vae())


@torch.no_grad()
def report(folder: Path) -> dict[str, float]:
    """Error and the share of held-out pictures that are still recognised after the VAE."""
    vae, rng = load(folder), random.Random(9)
    scenes = [flat_shapes.make_scene(rng, True) for _ in range(64)]
    pictures = flat_shapes.draw(scenes)
    back = to_pictures(vae, to_latents(vae, pictures))
    recognised = [flat_shapes.recognise(picture) for picture in back]
    return {
        "vae error": F.l1_loss(back, pictures).item(),
        "vae recognised": sum(flat_shapes.same(a, b) for a, b in zip(recognised, scenes, strict=True)) / len(scenes),
    }
