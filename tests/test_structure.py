"""The rules that the code keeps: which way imports run, and how it is written."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "nodes", "server"}
HEAVY = {"torch", "transformers", "numpy", "PIL", "safetensors", "einops", "diffusers"}
# Of ovis_core, what needs nothing but Python; safetensors' headers are read without torch.
PLAIN = {"config", "layout", "prompts", "release", "sizes", "schedule", "download", "checkpoint"}
PLAIN |= {"weights_file", "dependencies", "__init__"}


def imported(file: Path) -> set[str]:
    """Modules that a file imports when it is loaded, or later: those of ovis_core from its root on."""
    found = set()
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *((node.module,) if node.module else ())))
            found |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return found


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).glob("*.py"))]


def roots(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(file)}


@pytest.mark.parametrize("file", files("ovis_core", "ovis_core/networks"), ids=lambda file: file.stem)
def test_what_is_plain_torch_knows_no_comfyui(file: Path) -> None:
    assert not roots(file) & COMFYUI
    assert not [name for name in imported(file) if name.startswith(("ovis_core.native", "nodes."))]


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_what_is_plain_python_knows_no_torch(name: str) -> None:
    own = imported(ROOT / "ovis_core" / f"{name}.py")
    assert not {module.split(".")[0] for module in own} & (HEAVY - {"safetensors"})
    for module in own:
        if module.startswith("ovis_core."):
            assert module.split(".")[1] in PLAIN, module


@pytest.mark.parametrize("file", files("ovis_core/native"), ids=lambda file: file.stem)
def test_the_core_knows_no_nodes(file: Path) -> None:
    assert "nodes" not in roots(file)


def test_sources_can_be_read_on_windows() -> None:
    """Tools there open them as cp1252."""
    folders = ("nodes", "ovis_core", "scripts", "benchmarks", "tests")
    for file in [ROOT / "__init__.py", *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]:
        file.read_text(encoding="utf-8").encode("cp1252")


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda command: command[0])
def test_ruff(command: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
