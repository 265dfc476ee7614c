"""Ten pictures with captions of a colour that the small model was not trained on, to train a LoRA with."""

from __future__ import annotations

from pathlib import Path
from random import Random

import flat_shapes
import phrasings
import torch

PINK = (255, 105, 180)
PROMPT = "a pink square on a blue background"  # none of the pictures shows one


def write_pictures(folder: Path) -> None:
    """Writes `0.png` to `9.png`, each with its caption in a text file of the same name."""
    folder.mkdir(parents=True)
    rng = Random(8)
    made = 0
    while made < 10:
        scene = flat_shapes.make_scene(rng, False)
        if scene.shape.colour == "red" and (scene.shape.kind, scene.background) != ("square", "blue"):
            cover = (0.5 - flat_shapes.distance(scene.shape)).clamp(0, 1)
            ground = flat_shapes.colour_of(scene.background).view(3, 1, 1)
            picture = ground + cover * (torch.tensor(PINK).view(3, 1, 1) / 255 - ground)
            flat_shapes.to_image(picture).save(folder / f"{made}.png")
            text = phrasings.caption(scene, rng).replace(" red", " pink").replace("Red", "Pink")
            (folder / f"{made}.txt").write_text(text, encoding="utf-8")
            made += 1
