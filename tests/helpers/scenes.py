"""Images of flat shapes, to and from a server."""

from __future__ import annotations

from pathlib import Path

import cases
import flat_shapes
from flat_shapes import Scene, Shape

from comfy_server import ComfyServer

SQUARE = Scene("white", (Shape("square", "blue", "", "", 64, 64, 30),))
TRIANGLE = Scene("yellow", (Shape("triangle", "blue", "", "", 0, 0, 0),))
ASKS_FOR_TRIANGLE = "a blue triangle on a yellow background"


def upload_square(server: ComfyServer, folder: Path) -> str:
    """Puts a picture of `SQUARE` among ComfyUI's inputs; its name there."""
    file = folder / "blue_square.png"
    flat_shapes.to_image(flat_shapes.draw([SQUARE])[0]).save(file)
    return server.upload(file)


def scene_in(file: bytes) -> Scene:
    """The scene in an image file."""
    return flat_shapes.recognise(cases.from_png(file))
