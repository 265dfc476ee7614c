"""The page in a real browser: workflows open, run and show their image."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_server import ComfyServer
from graphs import WORKFLOWS, Graph, workflows
from pictures import picture
from workflow_api import to_api

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

SHOTS = Path(__file__).resolve().parent.parent / "output" / "screenshots"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
# No sandbox: the tests may run as root. The rest keeps the browser from looking for its maker's servers.
ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 60_000  # ms


@pytest.fixture(scope="module")
def page(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    browser = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium was found; install one or name it in BROWSER_PATH")
    example = tmp_path_factory.mktemp("page") / "example.png"
    picture(512, 512).save(example)
    server.upload(example)
    # A first start would open the template browser over the canvas.
    settings = json.dumps({"Comfy.TutorialCompleted": True}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/settings", settings, method="POST")).close()
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=ARGS)
        page = chromium.new_page(viewport={"width": 1900, "height": 950})
        page.goto(server.url)
        page.wait_for_function("window.app?.graph && window.app.extensionManager", timeout=WAIT)
        yield page
        chromium.close()


def drop(page: Any, workflow: dict[str, Any], name: str) -> None:
    """Opens a workflow the way a file that is dropped on the canvas opens."""
    page.evaluate(
        "([text, name]) => window.app.handleFile(new File([text], name, {type: 'application/json'}))",
        [json.dumps(workflow), f"{name}.json"],
    )
    count = len(workflow["nodes"])
    page.wait_for_function(f"window.app.graph._nodes.length === {count}", timeout=WAIT)
    page.wait_for_timeout(1000)


@pytest.mark.parametrize("name", sorted(file.stem for file in WORKFLOWS.glob("*.json")))
def test_a_workflow_opens_and_runs(page: Any, info: dict[str, Any], name: str) -> None:
    if name not in workflows(info):
        pytest.skip("this ComfyUI's Train LoRA has other outputs")
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    drop(page, workflow, name)
    # The page draws a node whose type it does not know as a plain LGraphNode.
    unknown = page.evaluate(
        "window.app.graph._nodes.filter((n) => !(n.type in window.LiteGraph.registered_node_types)).map((n) => n.type)"
    )
    assert unknown == []
    prompt = page.evaluate("(async () => (await window.app.graphToPrompt()).output)()")
    for node in prompt.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # where the page keeps what it showed
    ours = to_api(workflow, info)
    assert {i: (node["class_type"], node["inputs"]) for i, node in prompt.items()} == {
        i: (node["class_type"], node["inputs"]) for i, node in ours.items()
    }

    # A node takes up its images when it is drawn, so all of them must be in sight.
    width, height = (max(node["pos"][i] + node["size"][i] for node in workflow["nodes"]) for i in (0, 1))
    scale = min(1700 / width, 900 / (height + 150))
    page.evaluate("(scale) => Object.assign(window.app.canvas.ds, {scale, offset: [150, 150]})", scale)
    page.evaluate(
        """() => {
            const set = (type, values) => window.app.graph._nodes.filter((n) => n.type === type).forEach((n) =>
                n.widgets.forEach((w) => { if (w.name in values) w.value = values[w.name]; }));
            set("OvisU1Loader", {model_name: "tiny"});
            set("OvisU1Sampler", {steps: 2});
            set("PrimitiveInt", {value: 128});
            set("TrainLoraNode", {steps: 3});
            set("OvisU1TextEncode", {width: 128, height: 128});
            set("EmptyLatentImage", {width: 128, height: 128});
            set("OvisU1Understand", {max_new_tokens: 8});
            window.app.graph.setDirtyCanvas(true, true);
            window.app.queuePrompt(0, 1);
        }"""
    )
    page.wait_for_function(
        """() => window.app.graph._nodes.every((n) =>
            (n.type !== "SaveImage" || n.imgs?.length > 0) &&
            (n.type !== "PreviewAny" || n.widgets.some((w) => typeof w.value === "string" && w.value !== "")))""",
        timeout=WAIT,
    )
    page.wait_for_timeout(500)
    page.screenshot(path=SHOTS / f"{name}.png")
    assert Graph(ours).find_all("SaveImage") + Graph(ours).find_all("PreviewAny")
