"""Blueprints: a whole task as one node, found by search and dropped on another model's graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import flat_shapes
import pytest
from flat_shapes import Scene

from blueprints import BLUEPRINTS
from comfy_server import ComfyServer
from helpers.browser import FOUND, GROUPS, NODES, open_search, run
from helpers.canvas import overlaps, strays
from helpers.graphs import models
from helpers.scenes import ASKS_FOR_TRIANGLE, SQUARE, TRIANGLE, scene_in, upload_square
from ovis_core.weights import built_in

pytestmark = pytest.mark.skipif(not built_in.is_there(), reason="this copy of the pack lacks the small model")

# Another model's graph: it is not run, because it has no output node.
OTHER = """() => {
    const [loader, text] = ["CheckpointLoaderSimple", "CLIPTextEncode"].map((t) => window.LiteGraph.createNode(t));
    loader.pos = [-500, 0];
    text.pos = [-500, 300];
    window.app.graph.add(loader);
    window.app.graph.add(text);
    loader.connect(1, text, 0);
}"""
BLUEPRINT = "window.app.graph._nodes.find((n) => n.subgraph)"
SET = f"""(values) => {{ for (const [name, value] of Object.entries(values))
    {BLUEPRINT}.widgets.find((w) => w.name === name).value = value; }}"""
# Connects a new node to the blueprint's only output, and one to its image.
SHOW = f"""(type) => {{
    const node = window.LiteGraph.createNode(type), blueprint = {BLUEPRINT};
    window.app.graph.add(node);
    node.pos = [blueprint.pos[0] + 460, blueprint.pos[1]];
    blueprint.connect(0, node, 0);
}}"""
LOAD = f"""(name) => {{
    const node = window.LiteGraph.createNode("LoadImage"), blueprint = {BLUEPRINT};
    window.app.graph.add(node);
    node.pos = [blueprint.pos[0] - 400, blueprint.pos[1]];
    const widget = node.widgets.find((w) => w.name === "image");
    if (!widget.options.values.includes?.(name)) widget.options.values.push?.(name);
    widget.value = name;
    widget.callback?.(name);
    node.connect(0, blueprint, blueprint.inputs.findIndex((slot) => slot.name === "image"));
}}"""
ENDED = """() => { window.ended = false;
    window.app.api.addEventListener("execution_success", () => { window.ended = true; }, {once: true}); }"""


@pytest.fixture
def source(ready: ComfyServer, tmp_path: Path) -> str:
    """A picture of a blue square among ComfyUI's inputs."""
    return upload_square(ready, tmp_path)


def add(page: Any, name: str) -> None:
    """Adds a blueprint to another model's graph, by the search for nodes."""
    from playwright.sync_api import TimeoutError

    page.evaluate(OTHER)
    for _ in range(3):  # a slow page can ignore the click, because it fills the list of found nodes again
        open_search(page).press_sequentially(name)
        page.locator(FOUND).filter(has_text=re.compile(re.escape(name))).first.click()
        page.wait_for_timeout(300)
        page.mouse.click(1000, 400)  # newer pages let the node follow the mouse until it is placed
        try:
            page.wait_for_function(f"{BLUEPRINT} && {BLUEPRINT}.widgets.length > 0", timeout=20_000)
            return
        except TimeoutError:
            page.keyboard.press("Escape")
    raise AssertionError(f"the search for nodes does not add {name}")


def run_to_its_end(page: Any) -> dict[str, Any]:
    """Runs the graph; the prompt that the page sent."""
    page.evaluate(ENDED)
    with page.expect_request("**/prompt") as sent:
        run(page)
    page.wait_for_function("window.ended")
    return sent.value.post_data_json["prompt"]


def shown(page: Any) -> dict[str, Any]:
    """The output of the node outside that shows the result."""
    node = "window.app.graph._nodes.find((n) => ['SaveImage', 'PreviewAny'].includes(n.type)).id"
    page.wait_for_function(f"window.app.nodeOutputs[{node}]")
    return page.evaluate(f"window.app.nodeOutputs[{node}]")


def saved(page: Any, server: ComfyServer) -> Scene:
    """The scene in the image that the graph saved."""
    (entry,) = shown(page)["images"]
    return scene_in(server.image(entry))


def widgets(page: Any) -> list[str]:
    return page.evaluate(f"{BLUEPRINT}.widgets.map((w) => w.name)")


def test_text_to_image(page: Any, shots: Path, ready: ComfyServer, info: dict[str, Any]) -> None:
    add(page, "Ovis-U1 generate")
    assert widgets(page) == ["prompt", "width", "height", "seed", "steps", "model_name"]
    values = {"prompt": ASKS_FOR_TRIANGLE, "width": 128, "height": 128, "steps": 20, "seed": 1}
    page.evaluate(SET, values | {"model_name": built_in.NAME})
    page.evaluate(SHOW, "SaveImage")
    assert seed_of(run_to_its_end(page)) == 1
    seen = saved(page, ready)
    page.screenshot(path=shots / "blueprint_text_to_image.png")
    assert flat_shapes.same(seen, TRIANGLE)
    # Newer pages choose a new seed after a run. The one that is shown is used.
    shown_seed = page.evaluate(f"{BLUEPRINT}.widgets.find((w) => w.name === 'seed').value")
    assert (shown_seed != 1) == ("search_aliases" in info["OvisU1Sampler"])
    assert seed_of(run_to_its_end(page)) == shown_seed


def test_a_blueprint_takes_another_real_model(page: Any, shots: Path, info: dict[str, Any]) -> None:
    """As workflows do; the page shows the model outside and inside, and runs it."""
    name = models(info)[0]
    add(page, "Ovis-U1 generate")
    page.get_by_text(f"Ovis-U1-3B was not found; {name} was chosen instead.").first.wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=shots / "blueprint_model.png")
    assert page.evaluate(f"{BLUEPRINT}.widgets.find((w) => w.name === 'model_name').value") == name
    page.evaluate(SET, {"width": 128, "height": 128, "steps": 1})
    page.evaluate(SHOW, "SaveImage")
    (loader,) = [node for node in run_to_its_end(page).values() if node["class_type"] == "OvisU1Loader"]
    assert loader["inputs"]["model_name"] == name


def seed_of(prompt: dict[str, Any]) -> int:
    (sampler,) = [node for node in prompt.values() if node["class_type"] == "OvisU1Sampler"]
    return sampler["inputs"]["seed"]


@pytest.mark.parametrize("name", sorted(BLUEPRINTS))
def test_a_blueprint_opens(page: Any, shots: Path, name: str) -> None:
    """Its nodes are readable inside: none covers another or leaves its group."""
    add(page, name)
    page.evaluate(f"window.app.canvas.openSubgraph({BLUEPRINT}.subgraph, {BLUEPRINT})")
    page.wait_for_function("window.app.canvas.graph !== window.app.graph")
    page.wait_for_timeout(1000)  # nodes take their sizes when they are drawn
    page.screenshot(path=shots / f"{name}_inside.png")
    nodes, groups = (page.evaluate(asks.replace("app.graph", "app.canvas.graph")) for asks in (NODES, GROUPS))
    assert any(node["type"] == "OvisU1Loader" for node in nodes)
    assert overlaps(nodes) == []
    assert strays(nodes, groups) == []


def test_edit(page: Any, shots: Path, ready: ComfyServer, source: str) -> None:
    add(page, "Ovis-U1 edit")
    assert widgets(page) == ["prompt", "txt_cfg", "img_cfg", "seed", "steps", "model_name"]
    values = {"prompt": "make the square red", "steps": 20, "seed": 1, "model_name": built_in.NAME}
    page.evaluate(SET, values)
    page.evaluate(LOAD, source)
    page.evaluate(SHOW, "SaveImage")
    run_to_its_end(page)
    seen = saved(page, ready)
    page.screenshot(path=shots / "blueprint_edit.png")
    assert flat_shapes.same(seen, SQUARE.change(colour="red"))
    assert flat_shapes.kept(seen, SQUARE)


def test_ask(page: Any, shots: Path, source: str) -> None:
    add(page, "Ovis-U1 ask")
    assert widgets(page) == ["prompt", "max_new_tokens", "thinking", "model_name"]
    page.evaluate(SET, {"prompt": "Describe this image.", "model_name": built_in.NAME})
    page.evaluate(LOAD, source)
    page.evaluate(SHOW, "PreviewAny")
    run_to_its_end(page)
    answer = shown(page)["text"]
    page.screenshot(path=shots / "blueprint_ask.png")
    assert "a blue square on a white background" in str(answer)
