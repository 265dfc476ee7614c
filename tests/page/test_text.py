"""Text on the page, in both renderings: it stays on its node, and choices in prompts are picked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfy_server import ComfyServer
from helpers.browser import NODES_2, SMALL, open_dropped, run, set_widgets

SHORT = {
    **SMALL,
    "OvisU1Understand": {"max_new_tokens": 12},
    "OvisU1Sampler": {"steps": 2, "control_after_generate": "fixed"},
    "OvisU1Improve": {"steps": 2, "rounds": 1, "control_after_generate": "fixed"},
}
RUNS = "Ovis-U1: prefilled "  # the log has it once for each answer
# The text that a node of a class shows: the values of its widgets that are texts and not inputs.
SHOWN = """(type) => window.app.graph._nodes.filter((n) => n.type === type).map((n) =>
    n.widgets.filter((w) => w.name === "$$node-text-preview").map((w) => w.value).join("|"))"""
# Whether a node of a class shows a text in a visible field.
SEEN = """([type, text]) => window.app.graph._nodes.filter((n) => n.type === type).some((n) => n.widgets.some((w) => {
    const box = w.element?.getBoundingClientRect();
    return w.name === "$$node-text-preview" && w.element?.value === text && box.width > 20 && box.height > 20 &&
        getComputedStyle(w.element).visibility !== "hidden";
}))"""


# Removes the field as newer pages do at the end of each run, from the nodes of all classes.
REMOVE = """() => window.app.graph._nodes.forEach((n) => {
    const index = n.widgets?.findIndex((w) => w.name === "$$node-text-preview") ?? -1;
    if (index < 0) return;
    n.widgets[index].onRemove?.();
    n.widgets.splice(index, 1);
})"""


def wait_for_graph(page: Any) -> None:
    page.wait_for_function("window.app?.graph && window.app.extensionManager?.command")
    page.wait_for_function("window.app.graph._nodes.length > 0")


def run_to_its_end(page: Any) -> dict[str, Any]:
    """The prompt that the page sent, after it has run; without Preview as Text, which sends what it showed."""
    page.evaluate(
        """() => { window.ended = false;
            window.app.api.addEventListener("execution_success", () => { window.ended = true; }, {once: true}); }"""
    )
    with page.expect_request("**/prompt") as sent:
        run(page)
    page.wait_for_function("window.ended")
    prompt = sent.value.post_data_json["prompt"]
    return {i: node for i, node in prompt.items() if node["class_type"] != "PreviewAny"}


def shown(page: Any, node: str) -> list[str]:
    return page.evaluate(SHOWN, node)


def wait_for_text(page: Any, node: str, text: str) -> None:
    # The page does not render nodes outside the view.
    page.evaluate(
        "(type) => window.app.canvas.centerOnNode(window.app.graph._nodes.find((n) => n.type === type))", node
    )
    page.wait_for_function(SEEN, arg=[node, text])


@pytest.mark.parametrize(
    ("name", "node"),
    [("understand", "OvisU1Understand"), ("pick_the_best", "OvisU1Judge"), ("improve", "OvisU1Improve")],
)
def test_text_is_shown_after_a_reload_and_for_a_cached_run(
    page: Any, ready: ComfyServer, shots: Path, name: str, node: str
) -> None:
    open_dropped(page, name)
    set_widgets(page, SHORT)
    first = run_to_its_end(page)
    (text,) = shown(page, node)
    assert text.strip()
    wait_for_text(page, node, text)
    page.screenshot(path=shots / f"{name}_text.png")

    page.reload()
    wait_for_graph(page)
    wait_for_text(page, node, text)
    page.screenshot(path=shots / f"{name}_text_reloaded.png")

    # The same workflow as it came, without any text, and a run in which nothing is computed.
    page.evaluate("window.app.graph.clear()")
    open_dropped(page, name)
    set_widgets(page, SHORT)
    assert shown(page, node) == [""]
    before = ready.log_text().count(RUNS)
    again = run_to_its_end(page)
    wait_for_text(page, node, text)
    assert ready.log_text().count(RUNS) == before
    # The text on the node does not change the prompt, so the cache stays valid.
    assert run_to_its_end(page) == again == first


def test_the_field_returns_if_the_page_removes_it(page: Any, info: dict[str, Any], rendering: str) -> None:
    if rendering == NODES_2 and "search_aliases" not in info["OvisU1Sampler"]:
        pytest.skip("Nodes 2.0 of this page does not draw widgets that are added later")
    text = "a circle\non <b>red</b>"
    open_dropped(page, "understand")
    node = 'window.app.graph._nodes.find((n) => n.type === "OvisU1Understand")'
    page.evaluate(f"(text) => {node}.onExecuted({{text: [text]}})", text)
    for _ in range(2):
        page.evaluate(REMOVE)
        wait_for_text(page, "OvisU1Understand", text)
    assert shown(page, "OvisU1Understand") == [text]
    removed = page.evaluate(
        f"async () => {{ const n = {node}, all = n.widgets; window.app.graph.remove(n);"
        "await new Promise((done) => setTimeout(done, 100)); return [n.graph, all.length, n.widgets.length]; }"
    )
    assert removed[0] is None
    assert removed[1] == removed[2]


def test_dynamic_prompts_are_expanded(page: Any) -> None:
    texts = {
        "OvisU1TextEncode": {"prompt": "a {red|blue} heron", "negative_prompt": "{red|blue} fog"},
        "OvisU1EditEncode": {"prompt": "make it {red|blue}", "negative_prompt": "{red|blue} rain"},
        "OvisU1Understand": {"prompt": "Is it {red|blue}?"},
        "OvisU1Judge": {"question": "Is this {prompt}, {red|blue}?", "prompt": "{red|blue}"},
        "OvisU1Improve": {
            "prompt": "a {red|blue} heron",
            "judge_question": "Is this {prompt}, {red|blue}?",
            "question": "Why is this not {prompt}, {red|blue}?",
            "instruction": "{answer}, {red|blue}",
        },
    }
    templates = [("OvisU1Judge", "question")]
    templates += [("OvisU1Improve", name) for name in texts["OvisU1Improve"] if name != "prompt"]
    page.evaluate(
        "(types) => types.forEach((type) => window.app.graph.add(window.LiteGraph.createNode(type)))", [*texts]
    )
    set_widgets(page, texts)
    prompt = page.evaluate("(async () => (await window.app.graphToPrompt()).output)()")
    made = {
        (node["class_type"], name): node["inputs"][name]
        for node in prompt.values()
        for name in texts[node["class_type"]]
    }
    for node, name in templates:
        assert made.pop((node, name)) == texts[node][name]
    for (node, name), text in made.items():
        assert text in [texts[node][name].replace("{red|blue}", colour) for colour in ("red", "blue")]
    assert len(made) == 7
