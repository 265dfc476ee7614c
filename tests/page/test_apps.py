"""App mode of newer pages: three workflows as forms with a result, without their graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flat_shapes
import pytest

from comfy_server import ComfyServer
from helpers.browser import open_dropped, set_widgets
from helpers.paths import shows_text_files
from helpers.scenes import ASKS_FOR_TRIANGLE, SQUARE, TRIANGLE, scene_in, upload_square
from ovis_core.weights import built_in

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

FIELD = "[data-testid=app-mode-widget-item]"
LABELS = "[data-testid=builder-widget-label]"
QUICK = {
    "OvisU1Loader": {"model_name": built_in.NAME},
    "OvisU1Sampler": {"steps": 20, "seed": 1},
    "PrimitiveInt": {"value": 128},
}
# The file name of the image that the app shows as its result.
IMAGE = """() => [...document.querySelectorAll("img")]
    .filter((image) => image.clientWidth > 300 && image.naturalWidth > 0)
    .map((image) => new URL(image.src).searchParams.get("filename")).find((name) => name)"""


@pytest.fixture(autouse=True)
def _app_mode() -> None:
    if not shows_text_files():
        pytest.skip("this ComfyUI's page has no app mode")


def open_app(page: Any, name: str, widgets: dict[str, dict[str, Any]], prompt: str) -> list[str]:
    """Opens a workflow, which shows its graph, then its app, and writes a prompt there; the labels of the fields."""
    open_dropped(page, name)
    set_widgets(page, QUICK | widgets)
    assert page.locator(FIELD).count() == 0
    assert page.locator("#graph-canvas").is_visible()
    page.evaluate("() => { window.app.extensionManager.command.execute('Comfy.ToggleLinear'); }")
    page.locator(FIELD).first.wait_for()
    page.wait_for_timeout(1000)
    skip = page.get_by_role("button", name="Skip", exact=True)  # of the page's tour
    if skip.count():
        skip.dispatch_event("click")
        skip.wait_for(state="detached")
    page.locator(FIELD).filter(has_text="prompt").locator("textarea").fill(prompt)
    return page.locator(LABELS).all_inner_texts()


def press_run(page: Any) -> None:
    # Not a real click: if the page loads fast, it can leave its loading mask over everything.
    page.get_by_role("button", name="Run", exact=True).last.dispatch_event("click")


def result(page: Any, server: ComfyServer) -> flat_shapes.Scene:
    """The scene in the image that the app shows."""
    name = page.wait_for_function(IMAGE).json_value()
    (entry,) = page.evaluate(
        """(name) => Object.values(window.app.nodeOutputs).flatMap((output) => output.images ?? [])
            .filter((entry) => entry.filename === name)""",
        name,
    )
    return scene_in(server.image(entry))


def test_text_to_image(page: Any, ready: ComfyServer, shots: Path) -> None:
    labels = open_app(page, "text_to_image", {}, ASKS_FOR_TRIANGLE)
    assert labels == ["prompt", "width", "height", "steps", "seed", "model_name"]
    press_run(page)
    seen = result(page, ready)
    page.screenshot(path=shots / "app_text_to_image.png")
    assert flat_shapes.same(seen, TRIANGLE)


def test_edit(page: Any, ready: ComfyServer, shots: Path, tmp_path: Path) -> None:
    square = upload_square(ready, tmp_path)
    labels = open_app(page, "edit", {"LoadImage": {"image": square}}, "make the square red")
    assert labels == ["image", "prompt", "txt_cfg", "img_cfg", "steps", "seed", "model_name"]
    press_run(page)
    seen = result(page, ready)
    page.screenshot(path=shots / "app_edit.png")
    assert flat_shapes.same(seen, SQUARE.change(colour="red"))
    assert flat_shapes.kept(seen, SQUARE)


def test_understand(page: Any, ready: ComfyServer, shots: Path, tmp_path: Path) -> None:
    square = upload_square(ready, tmp_path)
    labels = open_app(page, "understand", {"LoadImage": {"image": square}}, "Describe this image.")
    assert labels == ["image", "prompt", "max_new_tokens", "thinking", "model_name"]
    press_run(page)
    page.locator("article").get_by_text("a blue square on a white background").wait_for()
    # The run has ended for the page too.
    page.get_by_role("button", name="Cancel this run").wait_for(state="detached")
    page.screenshot(path=shots / "app_understand.png")
