"""ComfyUI's page in a real browser.

A test that takes `page` runs once for each rendering of nodes. A test for one rendering only:

    @pytest.mark.parametrize("rendering", [NODES_2], indirect=True)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from comfy_server import ComfyServer
from helpers.browser import ARGS, BROWSERS, CLASSIC, ELEMENTS, NODES_2, SHOTS, WAIT, WINDOW, set_settings
from helpers.pictures import picture
from helpers.videos import write_video

STORED = (
    "cache_storage,cookies,file_systems,indexeddb,local_storage,service_workers,shared_storage,storage_buckets,websql"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser that keeps its cache from page to page."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium was found; install one or name it in BROWSER_PATH")
    with sync_api.sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("browser")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=path, args=ARGS, viewport=WINDOW
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def ready(server: ComfyServer, tmp_path_factory: pytest.TempPathFactory) -> ComfyServer:
    """The server with a picture and a video to load, after its first start."""
    folder = tmp_path_factory.mktemp("page")
    picture(512, 512).save(folder / "example.png")
    server.upload(folder / "example.png")
    server.upload(write_video(folder / "video.mp4", [picture(320, 240, k) for k in range(12)], "mpeg4", "yuv420p"))
    # A first start would open the template browser over the canvas.
    set_settings(server, {"Comfy.TutorialCompleted": True})
    return server


@pytest.fixture(params=[CLASSIC, NODES_2])
def rendering(request: pytest.FixtureRequest) -> str:
    """How the page draws nodes."""
    return request.param


@pytest.fixture
def shots(rendering: str) -> Path:
    """The folder for screenshots."""
    folder = SHOTS if rendering == CLASSIC else SHOTS / rendering
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(browser: Any, ready: ComfyServer, rendering: str) -> Iterator[Any]:
    """A page with an empty graph."""
    set_settings(ready, {"Comfy.VueNodes.Enabled": rendering == NODES_2})
    page = browser.new_page()
    # As for a user who opens the page for the first time, but for the cache.
    browser.new_cdp_session(page).send("Storage.clearDataForOrigin", {"origin": ready.url, "storageTypes": STORED})
    page.set_default_timeout(WAIT)
    page.goto(ready.url)
    page.wait_for_function("window.app?.graph && window.app.extensionManager?.command")
    # The default graph appears a moment later.
    page.wait_for_function("window.app.graph._nodes.length > 0")
    page.wait_for_function(f"{ELEMENTS} {'> 0' if rendering == NODES_2 else '=== 0'}")
    page.evaluate("window.app.graph.clear()")
    yield page
    page.close()
