"""The texts of the nodes: strings in nine languages, and help pages, as the server sends them to the page."""

from __future__ import annotations

import json
import re
import urllib.request
import warnings
from typing import Any

import pytest

import node_texts
import workspace
from comfy_server import ComfyServer
from helpers.paths import ROOT
from node_texts import OURS, english, leaves

LANGUAGES = ("en", "zh", "zh-TW", "ja", "ko", "fr", "es", "ru", "de")
IDENTIFIERS = re.compile(
    r"\b(restore_size|cfg_start|cfg_end|txt_cfg|img_cfg|image_only|weight_dtype|HF_ENDPOINT|models/\w+|\{prompt\})",
    re.ASCII,
)


def locale(language: str) -> dict[tuple[str, ...], str]:
    raw = (ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8")
    return {place: plain(text) for place, text in leaves(json.loads(raw)).items()}


def plain(text: str) -> str:
    """A text as the page shows it: it replaces placeholders in braces, and treats | and @ as special characters."""
    shown = text.replace("{'{'}", "\0").replace("{'}'}", "\1")
    assert not set(shown) & set("{}|@"), text
    return shown.replace("\0", "{").replace("\1", "}")


def test_generated_texts_match_the_schemas(info: dict[str, Any]) -> None:
    for file, text in node_texts.texts(info).items():
        assert file.read_text(encoding="utf-8") == text, f"{file.name} is old; run: python scripts/node_texts.py"
    assert {file.stem for file in (ROOT / "web" / "docs").glob("*.md")} == {*english(info)}


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_translations_match_the_english_texts(info: dict[str, Any], language: str) -> None:
    """A text that is not translated is a warning: the page shows it in English."""
    source = {place: plain(text) for place, text in leaves(english(info)).items()}
    found = locale(language)
    assert found.keys() <= source.keys()
    missing = [".".join(place) for place in source if place not in found]
    if missing:
        warnings.warn(f"{language} lacks {len(missing)} of {len(source)} texts: {', '.join(missing)}", stacklevel=1)
    for place, text in found.items():
        assert text.strip(), place
        if place[-1] in ("description", "tooltip"):
            assert text != source[place], place
            assert set(IDENTIFIERS.findall(text)) >= set(IDENTIFIERS.findall(source[place])), place
        if place[-1] == "display_name":
            assert text.startswith("Ovis-U1 "), place


def test_server_sends_the_translations(server: ComfyServer) -> None:
    with urllib.request.urlopen(f"{server.url}/i18n") as answer:
        texts = json.load(answer)
    for language in LANGUAGES:
        handed = {name: words for name, words in texts[language]["nodeDefs"].items() if name.startswith(OURS)}
        assert {place: plain(text) for place, text in leaves(handed).items()} == locale(language)


def test_every_node_has_a_help_page(server: ComfyServer, info: dict[str, Any]) -> None:
    for name in (name for name in info if name.startswith(OURS)):
        with urllib.request.urlopen(f"{server.url}/extensions/{workspace.PACK}/docs/{name}.md") as answer:
            page = answer.read().decode()
        assert page.startswith(f"# {info[name]['display_name']}"), name
        assert "mistake" in page.lower(), name


def test_search_aliases_are_single_terms(info: dict[str, Any]) -> None:
    """The page compares each with the words that a user types, so a list in one string finds nothing."""
    ours = {name: node for name, node in info.items() if name.startswith(OURS)}
    aliases = [alias for node in ours.values() for alias in node.get("search_aliases") or ()]
    assert bool(aliases) == ("search_aliases" in next(iter(info.values())))
    assert not [alias for alias in aliases if not re.fullmatch(r"\w+( \w+)*", alias)]
