"""The page in a real browser: finding, opening, running and reading as a user does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import workspace
from comfy_server import ComfyServer
from helpers.browser import (
    CLASSIC,
    CUT,
    FOUND,
    GROUPS,
    NODES,
    SHOWN,
    SMALL,
    drop,
    open_dropped,
    open_search,
    run,
    select,
    set_widgets,
    wait_for_nodes,
)
from helpers.canvas import READABLE, overlaps, strays
from helpers.graphs import NAMES, OLD, Graph, models, workflows
from workflow_api import TITLES, read_workflow, to_api

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

STEP = 250  # ms from one step of scrolling to the next, in which the page draws what has come
# Scrolls down the templates by a step, or back to the top at the end. The page loads more of them at the end and keeps
# only those in view.
SCROLL = """const scroll = () => {
    let box = document.querySelector("[role=dialog] img");
    while (box && !(/auto|scroll/.test(getComputedStyle(box).overflowY) && box.scrollHeight > box.clientHeight + 1))
        box = box.parentElement;
    if (!box) return;
    const end = box.scrollTop + box.clientHeight >= box.scrollHeight - 1;
    box.scrollTop = end ? 0 : box.scrollTop + box.clientHeight / 2;
};"""
# Whether the template of this name is loaded; scrolls if it is not.
SCROLLED = f"""(name) => {{
    {SCROLL}
    const found = [...document.querySelectorAll("[role=dialog] img")].some((image) => image.alt === name);
    if (!found) scroll();
    return found;
}}"""
# Those of these names whose thumbnail is loaded; scrolls if there are none.
LOADED = f"""(names) => {{
    {SCROLL}
    const images = [...document.querySelectorAll("[role=dialog] img")];
    const found = images.filter((image) => image.naturalWidth > 0 && names.includes(image.alt));
    if (!found.length) scroll();
    return found.length ? found.map((image) => image.alt) : null;
}}"""


def browse_templates(page: Any) -> Any:
    """Opens the pack's page of the template browser; the dialog."""
    page.evaluate("() => { window.app.extensionManager.command.execute('Comfy.BrowseTemplates'); }")
    entry = page.get_by_text(workspace.PACK, exact=True).first
    entry.scroll_into_view_if_needed()
    entry.click()
    return page.get_by_role("dialog")


def card(page: Any, dialog: Any, name: str) -> Any:
    """A template's picture; scrolling loads more of them."""
    page.wait_for_function(SCROLLED, arg=name, polling=STEP)
    return dialog.locator(f"img[alt='{name}']").first


def test_nodes_are_found_by_search(page: Any, shots: Path, info: dict[str, Any]) -> None:
    for words, names in {
        "ovis": {node["display_name"] for name, node in info.items() if name.startswith("OvisU1")},
        "ovis-u1 edit": {"Ovis-U1 Edit Encode"},
        **({"caption": {"Ovis-U1 Understand"}} if "search_aliases" in info["OvisU1Understand"] else {}),
    }.items():
        search = open_search(page)
        search.press_sequentially(words)
        for name in names:
            page.locator(FOUND).filter(has_text=name).first.wait_for(state="attached")
        # The nodes that Improve adds to the graph while it runs are not offered.
        for helper in ("(step)", "(result)"):
            assert page.locator(FOUND).filter(has_text=helper).count() == 0
        page.screenshot(path=shots / f"search_{words.replace(' ', '_')}.png")
        if words != "ovis":
            page.locator(FOUND).filter(has_text=next(iter(names))).first.click()
            wait_for_nodes(page, 1)
            assert page.evaluate("window.app.graph._nodes[0].title") in names
            page.evaluate("window.app.graph.clear()")
        page.keyboard.press("Escape")
        search.wait_for(state="detached")


def test_templates_have_thumbnails(page: Any, shots: Path) -> None:
    browse_templates(page)
    page.wait_for_function("document.querySelector('[role=dialog] img')?.naturalWidth > 0")
    page.screenshot(path=shots / "templates.png")
    left = set(TITLES.values())
    while left:
        # Pictures outside the view may be removed again.
        some = page.wait_for_function(LOADED, arg=sorted(left), polling=STEP).json_value()
        left -= set(some)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_opens_from_the_templates_and_runs(page: Any, shots: Path, info: dict[str, Any], name: str) -> None:
    if name not in workflows(info):
        pytest.skip("this ComfyUI's Train LoRA has other outputs")
    workflow = read_workflow(name)
    card(page, browse_templates(page), TITLES[name]).click()
    wait_for_nodes(page, len(workflow["nodes"]))
    # The page draws a node whose type it does not know as a plain LGraphNode.
    unknown = page.evaluate(
        "window.app.graph._nodes.filter((n) => !(n.type in window.LiteGraph.registered_node_types)).map((n) => n.type)"
    )
    assert unknown == []
    page.screenshot(path=shots / f"{name}_opened.png")
    assert page.evaluate("window.app.canvas.ds.scale") >= READABLE
    assert_nothing_is_hidden(page)
    prompt = page.evaluate("(async () => (await window.app.graphToPrompt()).output)()")
    for node in prompt.values():
        if node["class_type"] == "PreviewAny":
            node["inputs"].pop("preview", None)  # the page stores the last text here
    ours = to_api(workflow, info)
    Graph(ours).set("OvisU1Loader", model_name=models(info)[0])  # the workflow's own model is not there
    assert {i: (node["class_type"], node["inputs"]) for i, node in prompt.items()} == {
        i: (node["class_type"], node["inputs"]) for i, node in ours.items()
    }

    # A node takes up its images when it is drawn, so all of them must be in sight.
    set_widgets(page, SMALL)
    run(page)
    page.wait_for_function(SHOWN)
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"{name}.png")
    assert any(map(Graph(ours).find_all, ("SaveImage", "PreviewImage", "PreviewAny")))
    assert_nothing_is_hidden(page)


def assert_nothing_is_hidden(page: Any) -> None:
    nodes = page.evaluate(NODES)
    assert overlaps(nodes) == []
    assert strays(nodes, page.evaluate(GROUPS)) == []
    assert page.evaluate(CUT) == []


INPUTS = """window.app.graph._nodes.filter((n) => n.type === "OvisU1Understand").map((n) =>
    n.inputs.filter((i) => !i.widget).map((i) => [i.name, i.label ?? i.localized_name ?? i.name, i.type]))"""


def test_understand_shows_inputs_for_more_images(page: Any, shots: Path, info: dict[str, Any]) -> None:
    open_dropped(page, "multi_image")
    (inputs,) = page.evaluate(INPUTS)
    page.screenshot(path=shots / "more_images.png")
    names = [name for name, _, _ in inputs]
    more = [name for name in names if name.startswith("images.")]
    grows = "images" in info["OvisU1Understand"]["input"]["optional"]
    # One more than are connected, or the few that a page shows which cannot add them.
    assert more == [f"images.image_{i}" for i in range(2, 4 if grows else 5)]
    assert {name: label for name, label, _ in inputs if name in more} == {n: n.removeprefix("images.") for n in more}
    assert names[:4] == ["clip", "image", "video", "history"]
    assert {kind for name, _, kind in inputs if name == "video"} == {"IMAGE,VIDEO"}


@pytest.mark.parametrize("name", sorted(file.stem for file in OLD.glob("*.json")))
def test_workflows_of_the_first_version_still_open(page: Any, shots: Path, info: dict[str, Any], name: str) -> None:
    data = (OLD / f"{name}.json").read_bytes()
    workflow = json.loads(data)
    drop(page, data, f"{name}.json", "application/json")
    wait_for_nodes(page, len(workflow["nodes"]))
    page.screenshot(path=shots / f"0_1_0_{name.replace(' ', '_')}.png")
    prompt = page.evaluate("(async () => (await window.app.graphToPrompt()).output)()")
    ours = to_api(workflow, info)
    node = next(i for i, one in ours.items() if one["class_type"] == "OvisU1Understand")
    assert prompt[node]["inputs"] == ours[node]["inputs"]
    for inputs in page.evaluate(INPUTS):
        assert "images.image_2" in [one for one, _, _ in inputs]


def test_dropped_image_restores_its_workflow(page: Any, ready: ComfyServer) -> None:
    workflow = open_dropped(page, "text_to_image")
    set_widgets(page, SMALL | {"OvisU1TextEncode": {"prompt": "a heron in the reeds"}})
    run(page)
    page.wait_for_function(SHOWN)
    saved = "window.app.graph._nodes.find((n) => n.type === 'SaveImage').id"
    (entry,) = page.evaluate(f"window.app.nodeOutputs[{saved}].images")
    page.evaluate("window.app.graph.clear()")
    drop(page, ready.image(entry), "saved.png", "image/png")
    wait_for_nodes(page, len(workflow["nodes"]))
    types = page.evaluate("window.app.graph._nodes.map((n) => n.type)")
    assert sorted(types) == sorted(node["type"] for node in workflow["nodes"])
    prompt = (
        "window.app.graph._nodes.find((n) => n.type === 'OvisU1TextEncode').widgets.find((w) => w.name === 'prompt')"
    )
    assert page.evaluate(f"{prompt}.value") == "a heron in the reeds"


def test_a_reload_keeps_the_workflow(page: Any) -> None:
    """Under the name that it has in the template browser."""
    workflow = read_workflow("text_to_image")
    drop(page, json.dumps(workflow).encode(), f"{TITLES['text_to_image']}.json", "application/json")
    wait_for_nodes(page, len(workflow["nodes"]))
    set_widgets(page, {"OvisU1TextEncode": {"prompt": "a heron in the reeds"}})
    page.evaluate(
        """() => { const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
            (tracker.captureCanvasState ?? tracker.checkState).call(tracker); }"""
    )
    page.wait_for_timeout(1500)  # the page saves a change half a second later
    page.reload()
    page.wait_for_function("window.app?.graph && window.app.extensionManager?.command")
    wait_for_nodes(page, len(workflow["nodes"]))
    text = "window.app.graph._nodes.find((n) => n.type === 'OvisU1TextEncode').widgets.find((w) => w.name === 'prompt')"
    assert page.evaluate(f"{text}.value") == "a heron in the reeds"


def test_a_workflow_takes_another_real_model(page: Any, info: dict[str, Any]) -> None:
    open_dropped(page, "text_to_image")
    name = models(info)[0]
    page.get_by_text(f"Ovis-U1-3B was not found; {name} was chosen instead.").first.wait_for()
    loader = "window.app.graph._nodes.find((n) => n.type === 'OvisU1Loader')"
    assert page.evaluate(f"{loader}.widgets.find((w) => w.name === 'model_name').value") == name
    element = page.locator(f"[data-node-id='{page.evaluate(f'{loader}.id')}']")
    if element.count():  # Nodes 2.0
        fields = element.locator("input").evaluate_all("(fields) => fields.map((field) => field.value)")
        words = " ".join([element.inner_text(), *fields])
        assert name in words
        assert "Ovis-U1-3B" not in words


def test_error_message_is_shown_on_the_page(page: Any, shots: Path) -> None:
    open_dropped(page, "text_to_image")
    set_widgets(page, SMALL | {"PrimitiveInt": {"value": 1000}})
    run(page)
    sentence = page.get_by_text(
        "width and height: expected multiples of 16 pixels, got 1000 and 1000; use 992 and 992."
    )
    details = page.get_by_role("button", name="View details")
    sentence.or_(details).first.wait_for()
    # The page draws a border around the node that it keeps here.
    page.wait_for_function("window.app.lastExecutionError?.node_type === 'OvisU1TextEncode'")
    if details.count():
        details.first.dispatch_event("click")
    sentence.first.wait_for()
    page.screenshot(path=shots / "error.png")


def test_help_panel_shows_the_help_page(page: Any, shots: Path) -> None:
    open_dropped(page, "text_to_image")
    info = page.get_by_test_id("info-button").first
    heading = page.get_by_role("heading", name="Typical mistakes")
    for _ in range(10):
        select(page, "OvisU1Sampler")
        try:
            # Not a real click: if the page loads fast, it can leave its loading mask over everything.
            info.dispatch_event("click", timeout=3000)
            heading.wait_for(state="attached", timeout=10_000)
        except sync_api.TimeoutError:
            continue
        break
    heading.wait_for(state="attached")
    page.screenshot(path=shots / "help.png")
    panel = heading.locator("xpath=..")
    assert panel.evaluate("(h) => h.scrollWidth <= h.clientWidth"), "the help page is wider than its panel"


def test_text_is_shown_while_it_is_generated_and_chats_show_their_turns(page: Any, shots: Path, rendering: str) -> None:
    open_dropped(page, "chat")
    # A question that was asked in the other rendering is answered from the cache.
    question = f"What is on this image? ({rendering})"
    set_widgets(page, SMALL | {"OvisU1Understand": {"max_new_tokens": 300, "prompt": question}})
    run(page)
    # Nodes 2.0 may keep the text out of the widgets.
    written = """(() => { const node = window.app.graph._nodes.find((n) => n.type === "OvisU1Understand");
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        return `${node.widgets.map((w) => w.value).at(-1)} ${element?.innerText ?? ""}`; })()"""
    lengths = set()
    answers = (
        "window.app.graph._nodes.filter((n) => n.type === 'PreviewAny').map((n) =>"
        " n.widgets.map((w) => w.value).find((v) => typeof v === 'string' && v !== ''))"
    )
    while not all(page.evaluate(answers)):
        lengths.add(len(page.evaluate(written)))
        page.wait_for_timeout(100)
    assert len(lengths) > 2, "the text came all at once"
    shown = page.evaluate(answers)
    assert len(shown) == 2
    page.screenshot(path=shots / "chat_written.png")
    # The text can be selected and copied; fields of Nodes 2.0 are the page's own.
    style = "getComputedStyle(a).userSelect !== 'none'" if rendering == CLASSIC else "true"
    areas = f"[...document.querySelectorAll('textarea')].filter((a) => {style})"
    values = page.evaluate(f"{areas}.map((area) => area.value)")
    assert set(shown) <= set(values)
