"""Core features with Ovis-U1, one by one; prints the table."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import features
from comfy_server import ComfyServer
from features.table import ROWS, Lab, Row, Unavailable, markdown
from helpers.paths import ROOT

for _module in pkgutil.iter_modules(features.__path__):
    if not _module.name.startswith("test_"):
        importlib.import_module(f"features.{_module.name}")

TABLE = ROOT / "output" / "features.md"


@pytest.fixture(scope="module")
def done(pytestconfig: pytest.Config) -> Iterator[dict[str, str]]:
    """Outcomes by the names of rows; printed at the end."""
    outcomes: dict[str, str] = {}
    yield outcomes
    text = "\n".join(markdown(outcomes))
    TABLE.parent.mkdir(exist_ok=True)
    TABLE.write_text(text + "\n", encoding="utf-8")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n\n{text}\n", file=sys.stderr)  # one of several processes has no other way to the terminal


@pytest.fixture(scope="module")
def lab(comfyui: Path, server: ComfyServer, info: dict[str, Any], release: Path) -> Lab:
    return Lab(server, info, release)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_feature(lab: Lab, done: dict[str, str], row: Row) -> None:
    done[row.name] = "failed"
    try:
        outcome = row.run(lab)
    except Unavailable as error:
        done[row.name] = f"this ComfyUI has no {error}"
        pytest.skip(done[row.name])
    done[row.name] = outcome or "works"
