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


def test_inputs_that_grow_have_the_same_texts_in_every_comfyui() -> None:
    tip = {"tooltip": "Another image."}
    names = ["image_2", "image_3", "image_4", "image_5"]
    plain = {f"images.{name}": ["IMAGE", {**tip, "display_name": name}] for name in names[:3]}
    template = {"input": {"required": {}, "optional": {"image": ["IMAGE", tip]}}, "names": names, "min": 0}
    grows = {"images": ["COMFY_AUTOGROW_V3", {**tip, "template": template}]}
    first, second = ({**NODE, "input": {"required": {}, "optional": inputs}} for inputs in (plain, grows))
    made = with_lists(PAGE, first, ["Ovis-U1 Example"])
    assert "\n- `image_2`, `image_3`, `image_4` (IMAGE; optional): Another image.\n\n" in made
    assert with_lists(PAGE, second, ["Ovis-U1 Example"]) == made
    texts = english({"OvisU1Example": first})
    assert texts["OvisU1Example"]["inputs"]["images_image_3"] == {"name": "image_3", "tooltip": "Another image."}
    assert english({"OvisU1Example": second}) == texts


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
