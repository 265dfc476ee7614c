"""Trains the visual tokenizer and its embedding table to predict the part of the scene that each visual token shows.

A small ViT guesses the shape from its colours before it learns it. So most images here have any two colours, and each
patch predicts the direction of the outline in it; from these directions attention can tell the shape.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import flat_shapes
import torch
from networks import GRID, REGION, TOKENS, VISION, WIDTH, encode_images, make_multimodal, to_patches
from torch import Tensor, nn
from torch.nn import functional as F
from training import Muon, Run, cosine, descend, load_module, set_rate

STEPS = 1500
RATE = 2e-3
PICTURES = 24  # a step
CHOSEN = 64  # visual tokens of each that are computed, most of them near shapes
WHOLE = 0.7  # share of the steps after which every third step reads whole pictures, and fewer of them
ANY_COLOURS = 0.6  # share of pictures in colours without a name
DIRECTIONS = 12  # of an outline, which has no side: 15 degrees each
NEAR = 2.9  # pixels from a patch's centre to an outline that runs through it

COLOURS, KINDS = list(flat_shapes.COLOURS), list(flat_shapes.KINDS)
REGIONS = (len(KINDS) + 1, len(COLOURS), len(COLOURS))
UNKNOWN = -100  # as a target: not counted


def train(folder: Path, scale: float = 1.0) -> None:
    """The whole stage."""
    model = make_multimodal()
    heads = nn.ModuleDict(
        {
            "outline": nn.Linear(VISION["hidden_size"], DIRECTIONS + 1),
            "features": nn.Linear(4 * VISION["hidden_size"], sum(REGIONS)),
            "words": nn.Linear(WIDTH, sum(REGIONS)),
        }
    )
    weights = [*model.visual_tokenizer.parameters(), *model.vte.parameters(), *heads.parameters()]
    matrices = [w for name, w in model.visual_tokenizer.named_parameters() if w.ndim == 2 and "blocks" in name]
    others = [w for w in weights if not any(w is m for m in matrices)]
    optimizers = [Muon(matrices, RATE), torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)]

    def step(i: int, steps: int) -> dict[str, float]:
        set_rate(optimizers, RATE * cosine(i, steps, 100))
        whole = i >= WHOLE * steps and i % 3 == 0
        losses = picture_losses(model, heads, PICTURES // 4 if whole else PICTURES, TOKENS if whole else CHOSEN)
        descend(sum(value for name, value in losses.items() if not name.endswith("right")), weights, optimizers)
        return {name: value.item() for name, value in losses.items()}

    Run(folder, "vision", {"model": model, "heads": heads}, optimizers).train(step, round(STEPS * scale))


def picture_losses(model: nn.Module, heads: nn.ModuleDict, count: int, k: int) -> dict[str, Tensor]:
    """Losses of the attributes that the chosen visual tokens of new images predict."""
    rng = random
    scenes = [flat_shapes.make_scene(rng, False, 1 if rng.random() < 0.6 else 2) for _ in range(count)]
    unnamed = [rng.random() < ANY_COLOURS for _ in scenes]
    drawn = [recoloured if other else draw_one for other in unnamed]
    pictures = torch.stack([draw(scene) for draw, scene in zip(drawn, scenes, strict=True)])
    chosen = torch.stack([choose(scene, k) for scene in scenes])
    patches = to_patches(pictures, rng.random() < 0.5, chosen)
    embeddings, features, early = encode_images(model, patches, chosen)

    targets = torch.stack([regions(scene) for scene in scenes])
    targets[torch.tensor(unnamed), :, 1:] = UNKNOWN
    targets = targets.gather(1, chosen[..., None].expand(-1, -1, 3))
    lines = torch.stack([outlines(scene) for scene in scenes]).gather(1, chosen[..., None].expand(-1, -1, 4))
    outline = F.cross_entropy(heads["outline"](early).flatten(0, 1), lines.flatten())
    losses = {"outline": outline}
    for name, x, weight in (("features", features, 1.0), ("words", embeddings, 1.0)):
        scores = heads[name](x)
        loss, _ = attribute_loss(scores, targets, REGIONS)
        right = scores[..., : REGIONS[0]].argmax(-1) == targets[..., 0]
        losses |= {name: weight * loss, f"{name} kind right": right[targets[..., 0] > 0].float().mean()}
    return losses


def draw_one(scene: flat_shapes.Scene) -> Tensor:
    """The scene's picture (3, 128, 128)."""
    return flat_shapes.draw([scene])[0]


def recoloured(scene: flat_shapes.Scene) -> Tensor:
    """The scene's picture (3, 128, 128) in any colours, well apart."""
    while True:
        ground, *colours = torch.rand(1 + len(scene.shapes), 3, 1, 1)
        if all((colour - ground).norm() > 0.35 for colour in colours):
            break
    picture = ground.expand(3, flat_shapes.SIDE, flat_shapes.SIDE)
    for shape, colour in zip(scene.shapes, colours, strict=True):
        picture = picture + (0.5 - flat_shapes.distance(shape)).clamp(0, 1) * (colour - picture)
    return picture


def regions(scene: flat_shapes.Scene) -> Tensor:
    """For each visual token (tokens, 3): kind of the shape that it shows (0: none), its colour, the background."""
    ground = COLOURS.index(scene.background)
    out = torch.tensor([0, ground, ground]).repeat(TOKENS, 1)
    for shape in scene.shapes:
        away = flat_shapes.distance(shape, GRID, step=REGION).flatten()
        out[away < REGION / 2, 0] = 1 + KINDS.index(shape.kind)
        out[away < 0, 1] = COLOURS.index(shape.colour)
    return out


def outlines(scene: flat_shapes.Scene) -> Tensor:
    """For each patch, by visual token (tokens, 4): the direction of the outline in it, or that it has none."""
    side, step = 2 * GRID, REGION / 2
    out = torch.full((side, side), DIRECTIONS)
    for shape in scene.shapes:
        away = flat_shapes.distance(shape, side, step=step)
        dy, dx = torch.gradient(away)
        direction = (torch.atan2(dy, dx) / math.pi * DIRECTIONS).round().long() % DIRECTIONS
        out = torch.where(away.abs() < NEAR, direction, out)
    return out.view(GRID, 2, GRID, 2).transpose(1, 2).reshape(TOKENS, 4)


def choose(scene: flat_shapes.Scene, k: int) -> Tensor:
    """Indexes (k,) of visual tokens, ascending: those near the shapes, and others by chance."""
    if k == TOKENS:
        return torch.arange(TOKENS)
    away = torch.stack([flat_shapes.distance(shape, GRID, step=REGION).flatten() for shape in scene.shapes]).amin(0)
    order = torch.rand(TOKENS) + 2.0 * (away.abs() < 0.8 * REGION) + 0.2 * (away < 0)
    return order.topk(k).indices.sort().values


def attribute_loss(scores: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cross entropy, summed over attributes, and share right: scores (..., sum(sizes)), targets (..., len(sizes))."""
    loss, right = torch.zeros(()), []
    for part, target in zip(scores.flatten(0, -2).split(sizes, 1), targets.flatten(0, -2).unbind(1), strict=True):
        counted = target != UNKNOWN
        if bool(counted.any()):
            loss = loss + F.cross_entropy(part[counted], target[counted])
            right.append((part.argmax(1) == target)[counted].float().mean())
    return loss, torch.stack(right).mean()


def load(folder: Path) -> nn.Module:
    """Language model and visual tokenizer, of which the second is trained."""
    return load_module(folder, "vision", make_multimodal())
