"""The texts that are made from the nodes' schemas."""

from __future__ import annotations

from typing import Any

import pytest

from node_texts import current, english, facts, leaves, tree, with_lists

PAGE = """# Ovis-U1 Example

Text above.

## Inputs

- `old` (INT): An input that is gone.

Text below.

## Outputs

- `image` (IMAGE): Old words.

## Graph
"""
NODE: dict[str, Any] = {
    "display_name": "Ovis-U1 Example",
    "description": "Uses {prompt}.",
    "input": {
        "required": {
            "model": ["MODEL", {"tooltip": "The MODEL of Ovis-U1 Example, with <tags>."}],
            "block.0.": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01, "tooltip": "Of txt_in."}],
        },
        "optional": {"mode": ["COMBO", {"options": ["a", "b"], "default": "a", "tooltip": "A file in models/vae."}]},
    },
    "output": ["IMAGE"],
    "output_name": ["image"],
    "output_is_list": [True],
    "output_tooltips": ["New words."],
}


def test_lists_are_replaced_and_other_text_is_kept() -> None:
    made = with_lists(PAGE, NODE, ["Ovis-U1 Example"])
    inputs = [
        "- `model` (MODEL): The MODEL of *Ovis-U1 Example*, with `<tags>`.",
        "- `block.0.` (FLOAT, 0 to 1, step 0.01; default 1): Of `txt_in`.",
        "- `mode` (choice: `a`, `b`; default `a`; optional): A file in `models/vae`.",
    ]
    expected = PAGE.replace("- `old` (INT): An input that is gone.", "\n".join(inputs))
    assert made == expected.replace("- `image` (IMAGE): Old words.", "- `image` (list of IMAGE): New words.")
    assert with_lists(made, NODE, ["Ovis-U1 Example"]) == made


def test_error_for_a_page_without_a_heading() -> None:
    with pytest.raises(ValueError, match="# Ovis-U1 Example: expected one heading '## Outputs', got 0"):
        with_lists(PAGE.replace("## Outputs", "## Results"), NODE, ["Ovis-U1 Example"])


def test_locale_keys_without_dots_and_escaped_braces() -> None:
    made = english({"OvisU1Example": NODE, "Other": {}})
    assert [*made] == ["OvisU1Example"]
    assert made["OvisU1Example"]["description"] == "Uses {'{'}prompt{'}'}."
    assert made["OvisU1Example"]["inputs"]["block_0_"] == {"name": "block.0.", "tooltip": "Of txt_in."}
    assert tree(leaves(made)) == made


def test_inputs_that_grow_are_one_input() -> None:
    """Whether the page adds them or shows a fixed number of them."""
    picture = ["IMAGE", {"tooltip": "More images."}]
    template = {"input": {"required": {}, "optional": {"image": picture}}, "names": ["image_2", "image_3"], "min": 0}
    growing = {"images": ["COMFY_AUTOGROW_V3", {"tooltip": "More images.", "template": template}]}
    fixed = {"images.image_2": picture, "images.image_3": picture}
    pages, locales = set(), []
    for more in (growing, fixed):
        node = {**NODE, "input": {"required": {}, "optional": more}}
        pages.add(with_lists(PAGE, node, ["Ovis-U1 Example"]))
        locales.append(english({"OvisU1Example": node})["OvisU1Example"]["inputs"])
    (page,) = pages
    assert "## Inputs\n\n- `images` (IMAGE; optional): More images.\n\n" in page
    names = {f"images_{name}": {"name": name} for name in ("image_2", "image_3")}
    assert locales == 2 * [{"images": {"name": "images", "tooltip": "More images."}, **names}]


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("INT", {"min": 0, "max": 2**64 - 1, "default": 0}, "INT, 0 to 18446744073709551615; default 0"),
        ("INT", {"min": 16, "max": 64, "step": 16}, "INT, 16 to 64, step 16"),
        ("BOOLEAN", {"default": False}, "BOOLEAN; default off"),
        ("STRING", {"default": ""}, "STRING; default empty"),
        (["a", "b"], {}, "choice"),
        ("COMBO", {"options": [*"abcdefghi"], "default": "a"}, "choice; default `a`"),
    ],
)
def test_facts_about_an_input(kind: Any, options: dict[str, Any], expected: str) -> None:
    assert facts(kind, options, False) == expected
    assert facts(kind, options, True) == f"{expected}; optional"


def test_translations_of_changed_texts_are_removed() -> None:
    old = {("a",): "one", ("b",): "two", ("c",): "three"}
    new = {("b",): "two", ("a",): "ONE", ("d",): "four"}
    assert current({("a",): "eins", ("b",): "zwei", ("c",): "drei"}, old, new) == {("b",): "zwei"}
    assert current({("a",): "eins", ("c",): "drei"}, new, new) == {("a",): "eins"}
