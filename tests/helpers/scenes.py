"""Pictures of the small model's world, to and from a server."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
import world
from PIL import Image
from world import Scene, Shape

from comfy_server import ComfyServer

SQUARE = Scene("white", (Shape("square", "blue", "", "", 64, 64, 30),))
TRIANGLE = Scene("yellow", (Shape("triangle", "blue", "", "", 0, 0, 0),))
ASKS_FOR_TRIANGLE = "a blue triangle on a yellow background"


def upload_square(server: ComfyServer, folder: Path) -> str:
    """Puts a picture of `SQUARE` among ComfyUI's inputs; its name there."""
    file = folder / "blue_square.png"
    pixels = (world.draw([SQUARE])[0].permute(1, 2, 0) * 255).round().byte()
    Image.fromarray(pixels.numpy()).save(file)
    return server.upload(file)


def scene_in(file: bytes) -> Scene:
    """What an image file shows."""
    with Image.open(io.BytesIO(file)) as image:
        pixels = torch.from_numpy(np.asarray(image.convert("RGB")).copy())
    return world.look(pixels.permute(2, 0, 1) / 255)
