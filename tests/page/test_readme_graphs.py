"""Workflows on the small model that comes with the pack, from the page: it shows the right results.

They write the README's images, `graph_*.png`, to `output/screenshots/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flat_shapes
import pytest
from flat_shapes import Scene

from comfy_server import ComfyServer
from helpers.browser import CLASSIC, GROUPS, NODES, SHOWN, open_dropped, run, set_widgets
from helpers.scenes import ASKS_FOR_TRIANGLE, SQUARE, TRIANGLE, scene_in, upload_square
from ovis_core.weights import built_in

pytestmark = [
    pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model"),
    pytest.mark.parametrize("rendering", [CLASSIC], indirect=True),
]

WIDE = {"width": 2400, "height": 1400}  # of the window: a graph at its own size
EDGE = 12  # pixels around a graph
MODEL = {"OvisU1Loader": {"model_name": built_in.NAME}, "OvisU1Sampler": {"steps": 20, "seed": 1}}
CENTRE = "([x, y]) => { const {ds} = window.app.canvas; ds.scale = 1; ds.offset[0] = x; ds.offset[1] = y; }"


@pytest.fixture
def source(ready: ComfyServer, tmp_path: Path) -> str:
    """A picture of a blue square among ComfyUI's inputs."""
    return upload_square(ready, tmp_path)


def run_and_shoot(page: Any, shots: Path, name: str, widgets: dict[str, dict[str, Any]]) -> None:
    """Runs one of the pack's workflows and saves a picture of its graph."""
    page.set_viewport_size(WIDE)
    open_dropped(page, name)
    set_widgets(page, MODEL | widgets)
    # The page shows a picture when its widget's callback gets the name.
    page.evaluate("""window.app.graph._nodes.filter((n) => n.type === 'LoadImage').forEach((n) => {
        const widget = n.widgets.find((w) => w.name === 'image'); widget.callback?.(widget.value); })""")
    boxes = [(*node["pos"], *node["size"]) for node in page.evaluate(NODES)]
    boxes += [
        group["bounding"].values() if isinstance(group["bounding"], dict) else group["bounding"]
        for group in page.evaluate(GROUPS)
    ]
    boxes = [tuple(box) for box in boxes]
    left, top = min(x for x, *_ in boxes), min(y for _, y, *_ in boxes)
    right, bottom = max(x + w for x, _, w, _ in boxes), max(y + h for _, y, _, h in boxes)
    at = (300, 160)
    page.evaluate(CENTRE, [at[0] - left, at[1] - top])
    run(page)
    page.wait_for_function(SHOWN)
    page.wait_for_timeout(5000)  # until the page stops showing that a job has ended
    page.add_style_tag(content=".minimap-main-container, .p-toast { display: none !important; }")
    clip = {"x": at[0] - EDGE, "y": at[1] - EDGE, "width": right - left + 2 * EDGE, "height": bottom - top + 2 * EDGE}
    canvas = page.locator("#graph-canvas").bounding_box()
    clip["x"] += canvas["x"]
    clip["y"] += canvas["y"]
    page.screenshot(path=shots / f"graph_{name}.png", clip=clip)


def saved(page: Any, server: ComfyServer) -> Scene:
    """The scene in the image that the graph saved."""
    node = "window.app.graph._nodes.find((n) => n.type === 'SaveImage').id"
    (entry,) = page.evaluate(f"window.app.nodeOutputs[{node}].images")
    return scene_in(server.image(entry))


def test_text_to_image(page: Any, shots: Path, ready: ComfyServer) -> None:
    words = {"OvisU1TextEncode": {"prompt": ASKS_FOR_TRIANGLE}, "PrimitiveInt": {"value": 128}}
    run_and_shoot(page, shots, "text_to_image", words)
    assert flat_shapes.same(saved(page, ready), TRIANGLE)


def test_edit(page: Any, shots: Path, ready: ComfyServer, source: str) -> None:
    words = {"LoadImage": {"image": source}, "OvisU1EditEncode": {"prompt": "make the square red"}}
    run_and_shoot(page, shots, "edit", words)
    seen = saved(page, ready)
    assert flat_shapes.same(seen, SQUARE.change(colour="red"))
    assert flat_shapes.kept(seen, SQUARE)


def test_understand(page: Any, shots: Path, source: str) -> None:
    words = {"LoadImage": {"image": source}, "OvisU1Understand": {"prompt": "Describe this image."}}
    run_and_shoot(page, shots, "understand", words)
    texts = page.evaluate(
        "window.app.graph._nodes.filter((n) => n.type === 'PreviewAny').map((n) => n.widgets.map((w) => w.value))"
    )
    assert any("a blue square on a white background" in str(text) for text in texts)
