"""Pictures of the small model's world, to and from a server."""

from __future__ import annotations

from pathlib import Path

import cases
import world
from world import Scene, Shape

from comfy_server import ComfyServer

SQUARE = Scene("white", (Shape("square", "blue", "", "", 64, 64, 30),))
TRIANGLE = Scene("yellow", (Shape("triangle", "blue", "", "", 0, 0, 0),))
ASKS_FOR_TRIANGLE = "a blue triangle on a yellow background"


def upload_square(server: ComfyServer, folder: Path) -> str:
    """Puts a picture of `SQUARE` among ComfyUI's inputs; its name there."""
    file = folder / "blue_square.png"
    world.to_image(world.draw([SQUARE])[0]).save(file)
    return server.upload(file)


def scene_in(file: bytes) -> Scene:
    """What an image file shows."""
    return world.look(cases.from_png(file))
