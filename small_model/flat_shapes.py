"""Scenes of one or two flat shapes on a plain background: made at random, drawn as images, and recognised in images.

A seed determines a scene, which is made with a `random.Random`. `recognise` fits shapes to an image, without a model.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

SIDE = 128  # pixels per side of an image
COLOURS = {
    "red": (220, 30, 30),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (250, 220, 50),
    "orange": (245, 140, 20),
    "purple": (140, 50, 170),
    "black": (20, 20, 20),
    "white": (245, 245, 245),
}
KINDS = ("circle", "square", "triangle")
SIZES = {"small": (18.0, 22.0), "": (27.0, 33.0), "large": (38.0, 43.0)}  # radius in pixels; "" is not mentioned
PLACES = {
    "": (0, 0),
    "on the left": (-26, 0),
    "on the right": (26, 0),
    "at the top": (0, -26),
    "at the bottom": (0, 26),
}
REACH = {"small": 1.2, "": 1.0, "large": 0.55}  # how far from the centre a place lies, by size
PAIR_RADIUS = (18.0, 24.0)
SMALLEST = 80  # pixels of a shape that `recognise` reports
COUNTS = ("no", "one", "two")

_NAMES = list(COLOURS)
_PALETTE = torch.tensor([COLOURS[name] for name in _NAMES]) / 255


@dataclass(frozen=True)
class Shape:
    """One flat shape; x, y and radius in pixels. fit is the overlap that `recognise` found, 1 if made."""

    kind: str
    colour: str
    size: str
    place: str
    x: float
    y: float
    radius: float
    fit: float = 1.0


@dataclass(frozen=True)
class Scene:
    """A ground colour and one or two shapes, from left to right."""

    background: str
    shapes: tuple[Shape, ...]

    @property
    def shape(self) -> Shape:
        """The first shape."""
        return self.shapes[0]

    def change(self, background: str | None = None, **shape: str) -> Scene:
        """The scene with another ground or with another kind or colour of its first shape."""
        return Scene(background or self.background, (replace(self.shape, **shape), *self.shapes[1:]))


def held_out(kind: str, colour: str, background: str) -> bool:
    """Whether training never shows this combination: a fifth of them, by a hash of the words."""
    return zlib.crc32(f"{kind} {colour} {background}".encode()) % 5 == 0


def is_held_out(scene: Scene) -> bool:
    """Whether training never shows one of the scene's shapes in its colour on this ground."""
    return any(held_out(shape.kind, shape.colour, scene.background) for shape in scene.shapes)


def make_scene(rng: Random, test: bool, shapes: int = 1) -> Scene:
    """A scene that training shows, or, with `test`, one that it never shows."""
    while True:
        background, *colours = rng.sample(_NAMES, shapes + 1)
        kinds = rng.sample(KINDS, shapes)
        made = _one(rng, kinds[0], colours[0]) if shapes == 1 else _pair(rng, kinds, colours)
        scene = Scene(background, made)
        if is_held_out(scene) == test:
            return scene


def _one(rng: Random, kind: str, colour: str) -> tuple[Shape, ...]:
    size, place = rng.choice(["", "", "small", "large"]), rng.choice(["", "", *list(PLACES)[1:]])
    dx, dy = (REACH[size] * offset for offset in PLACES[place])
    x, y = (SIDE / 2 + offset + rng.uniform(-4, 4) for offset in (dx, dy))
    return (Shape(kind, colour, size, place, x, y, rng.uniform(*SIZES[size])),)


def _pair(rng: Random, kinds: Sequence[str], colours: Sequence[str]) -> tuple[Shape, ...]:
    made = []
    for kind, colour, place, x in zip(kinds, colours, ("on the left", "on the right"), (33, 95), strict=True):
        at = (x + rng.uniform(-5, 5), SIDE / 2 + rng.uniform(-18, 18))
        made.append(Shape(kind, colour, "small", place, *at, rng.uniform(*PAIR_RADIUS)))
    return tuple(made)


# ---- drawing


def draw(scenes: Sequence[Scene], side: int = SIDE, corners: Tensor | None = None) -> Tensor:
    """Pictures (B, 3, side, side) in 0..1 with smooth edges; `corners` (B, 2) is where a crop begins, as x, y."""
    corners = torch.zeros(len(scenes), 2) if corners is None else corners
    return torch.stack([_draw(scene, side, corner) for scene, corner in zip(scenes, corners, strict=True)])


def to_image(picture: Tensor, transparent: Tensor | None = None) -> Image.Image:
    """A picture (3, H, W) in 0..1 in 8 bits; a mask (H, W) becomes transparent."""
    from ovis_core.pixels import to_pil

    image = to_pil(picture.permute(1, 2, 0))
    if transparent is not None:
        image.putalpha(Image.fromarray(torch.where(transparent, 0, 255).byte().numpy()))
    return image


def _draw(scene: Scene, side: int, corner: Tensor) -> Tensor:
    picture = colour_of(scene.background).view(3, 1, 1).expand(3, side, side)
    for shape in scene.shapes:
        cover = (0.5 - distance(shape, side, corner)).clamp(0, 1)
        picture = picture + cover * (colour_of(shape.colour).view(3, 1, 1) - picture)
    return picture


def colour_of(name: str) -> Tensor:
    """RGB (3,) in 0..1."""
    return _PALETTE[_NAMES.index(name)]


def distance(shape: Shape, side: int = SIDE, corner: Sequence[float] | Tensor = (0, 0), step: float = 1) -> Tensor:
    """(side, side) distances in pixels to the shape's outline, negative inside; `step` pixels between two of them."""
    grid = torch.arange(side) * step + step / 2
    x = (grid + float(corner[0]) - shape.x).expand(side, side)
    y = (grid + float(corner[1]) - shape.y)[:, None].expand(side, side)
    r = shape.radius
    if shape.kind == "circle":
        return torch.hypot(x, y) - r
    if shape.kind == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * r
    y = y - 0.2 * r
    return torch.maximum(y, math.cos(math.pi / 6) * x.abs() - 0.5 * y) - 0.64 * r


# Pixels of a shape of radius 1, and how far the centroid lies below the shape's centre.
AREA = {"circle": math.pi, "square": (2 * 0.86) ** 2, "triangle": 3 * math.sqrt(3) * 0.64**2}
CENTROID = {"circle": 0.0, "square": 0.0, "triangle": 0.2}


# ---- recognising


def recognise(picture: Tensor) -> Scene:
    """The scene recognised in a picture (3, 128, 128) in 0..1: nearest colours, and the best shape for each patch."""
    nearest = (picture[None] - _PALETTE[:, :, None, None]).square().sum(1).argmin(0)
    edge = torch.cat(
        (nearest[:5].flatten(), nearest[-5:].flatten(), nearest[:, :5].flatten(), nearest[:, -5:].flatten())
    )
    background = int(edge.bincount(minlength=len(_NAMES)).argmax())
    from_ground = (picture - _PALETTE[background].view(3, 1, 1)).norm(dim=0)
    labels, count = ndimage.label((from_ground > 0.25).numpy())
    shapes = []
    for i in range(1, count + 1):
        part = torch.from_numpy(labels == i)
        if int(part.sum()) < SMALLEST:
            continue
        inside = torch.from_numpy(ndimage.binary_erosion(labels == i, iterations=3))
        votes = nearest[inside if bool(inside.any()) else part].bincount(minlength=len(_NAMES))
        votes[background] = 0
        colour = int(votes.argmax())
        mask = part & ((picture - _PALETTE[colour].view(3, 1, 1)).norm(dim=0) < from_ground)
        if int(mask.sum()) >= SMALLEST:
            shapes.append(_fit(mask, _NAMES[colour]))
    return Scene(_NAMES[background], tuple(sorted(shapes, key=lambda shape: shape.x)))


def _fit(mask: Tensor, colour: str) -> Shape:
    rows, columns = np.nonzero(mask.numpy())
    x, y, pixels = columns.mean() + 0.5, rows.mean() + 0.5, len(rows)
    best = None
    for kind in KINDS:
        radius = math.sqrt(pixels / AREA[kind])
        for scale in (0.96, 1.0, 1.04):
            tried = Shape(kind, colour, "", "", x, y - CENTROID[kind] * radius, scale * radius)
            template = distance(tried) < 0
            overlap = float((template & mask).sum() / (template | mask).sum())
            if best is None or overlap > best.fit:
                best = replace(tried, fit=overlap, radius=radius)
    assert best is not None
    size = min(SIZES, key=lambda name: abs(sum(SIZES[name]) / 2 - best.radius))
    dx, dy = best.x - SIDE / 2, best.y - SIDE / 2
    place = min(
        PLACES, key=lambda name: math.hypot(*(REACH[size] * p - d for p, d in zip(PLACES[name], (dx, dy), strict=True)))
    )
    return replace(best, size=size, place=place)


def same(found: Scene, meant: Scene) -> bool:
    """Whether ground, number of shapes, and each one's kind and colour agree."""
    pairs = zip(found.shapes, meant.shapes, strict=False)
    return (
        found.background == meant.background
        and len(found.shapes) == len(meant.shapes)
        and all((a.kind, a.colour) == (b.kind, b.colour) for a, b in pairs)
    )


def kept(found: Scene, meant: Scene, pixels: float = 7.0) -> bool:
    """Whether each shape lies where it is meant to, and has its size, to within so many pixels."""
    return all(
        max(abs(a.x - b.x), abs(a.y - b.y), abs(a.radius - b.radius)) <= pixels
        for a, b in zip(found.shapes, meant.shapes, strict=False)
    )
