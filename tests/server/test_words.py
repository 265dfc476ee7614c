"""What people read of the nodes: strings in nine languages, and help pages, as the server hands them to the page."""

from __future__ import annotations

import json
import re
import urllib.request
from typing import Any

import pytest

import workspace
from comfy_server import ComfyServer
from helpers.paths import ROOT

LANGUAGES = ("en", "zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "de")
OURS = "OvisU1"
IDENTIFIERS = re.compile(
    r"\b(restore_size|cfg_start|cfg_end|txt_cfg|img_cfg|image_only|weight_dtype|HF_ENDPOINT|models/\w+|\{prompt\})",
    re.ASCII,
)


def strings(info: dict[str, Any]) -> dict[str, Any]:
    """The nodes' own, in the form of a locale, whose keys have no dots."""
    found = {}
    for name, node in info.items():
        if name.startswith(OURS):
            inputs = {
                key.replace(".", "_"): {"name": key, "tooltip": spec[1]["tooltip"]}
                for kind in ("required", "optional")
                for key, spec in node["input"].get(kind, {}).items()
            }
            outputs = {
                str(slot): {"name": called, "tooltip": tooltip}
                for slot, (called, tooltip) in enumerate(zip(node["output_name"], node["output_tooltips"], strict=True))
            }
            words = {"display_name": node["display_name"], "description": node["description"]}
            found[name] = {**words, "inputs": inputs, "outputs": outputs}
    return found


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    if isinstance(tree, dict):
        return {place: text for key, value in tree.items() for place, text in leaves(value, (*path, key)).items()}
    return {path: tree}


def locale(language: str) -> dict[tuple[str, ...], str]:
    raw = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    return {place: plain(text) for place, text in leaves(json.loads(raw)).items()}


def plain(text: str) -> str:
    """As the page shows it: it fills in what stands in braces, and reads | and @ as its own signs."""
    shown = text.replace("{'{'}", "\0").replace("{'}'}", "\1")
    assert not set(shown) & set("{}|@"), text
    return shown.replace("\0", "{").replace("\1", "}")


def test_english_is_what_the_nodes_say(info: dict[str, Any]) -> None:
    assert locale("en") == leaves(strings(info))


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_a_language_lacks_nothing(info: dict[str, Any], language: str) -> None:
    english, found = leaves(strings(info)), locale(language)
    assert found.keys() == english.keys()
    for place, text in found.items():
        assert text.strip(), place
        if place[-1] in ("description", "tooltip"):
            assert text != english[place], place
            assert set(IDENTIFIERS.findall(text)) >= set(IDENTIFIERS.findall(english[place])), place
        if place[-1] == "display_name":
            assert text.startswith("Ovis-U1 "), place


def test_the_server_hands_them_out(server: ComfyServer) -> None:
    with urllib.request.urlopen(f"{server.url}/i18n") as answer:
        told = json.load(answer)
    for language in LANGUAGES:
        (text,) = {told[language]["nodeDefs"]["OvisU1Sampler"]["description"]}
        assert text == locale(language)["OvisU1Sampler", "description"]


def test_every_node_has_a_page(server: ComfyServer, info: dict[str, Any]) -> None:
    nodes = [name for name in info if name.startswith(OURS)]
    assert {file.stem for file in (ROOT / "web" / "docs").glob("*.md")} == set(nodes)
    for name in nodes:
        with urllib.request.urlopen(f"{server.url}/extensions/{workspace.PACK}/docs/{name}.md") as answer:
            page = answer.read().decode()
        assert page.startswith(f"# {info[name]['display_name']}"), name
        inputs = [key for kind in ("required", "optional") for key in info[name]["input"].get(kind, {})]
        missing = [key for key in inputs if key not in page]
        assert not missing or name == "OvisU1ModelMerge", (name, missing)
        assert "mistake" in page.lower(), name
