"""The rules that the code keeps: which way imports run, and how it is written."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pathspec import GitIgnoreSpec
from safetensors.torch import save_file

from helpers.imports import imported, roots
from helpers.paths import ROOT

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "node_helpers", "nodes", "server"}
HEAVY = {"torch", "transformers", "numpy", "PIL", "einops", "diffusers"}
# Of ovis_core, what needs nothing but Python.
PLAIN = {"config", "layout", "prompts", "release", "sizes", "schedule", "download", "checkpoint"}
PLAIN |= {"weights_file", "dependencies", "built_in", "hub", "hub_cache", "__init__"}
# Imports those named and reads a file's header; prints what came along of HEAVY. safetensors' own way takes numpy.
LOAD_PLAIN = """
import sys
from importlib import import_module
from pathlib import Path

scripts, file, heavy, *plain = sys.argv[1:]
sys.path.insert(0, scripts)
__import__("import_core").import_core()
for name in plain:
    import_module(f"ovis_core.{name}")
assert import_module("ovis_core.weights_file").read_shapes(Path(file))
print(*sorted({*heavy.split()} & {*sys.modules}))
"""


def of_core(file: Path) -> set[str]:
    return {name for name in imported(file) if name.split(".")[0] == "ovis_core"}


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> int:
    """Of ovis_core: 2 touches ComfyUI, 1 is plain torch, 0 plain Python."""
    _, room, *_ = [*module.split("."), "__init__"]
    return 2 if room == "native" else 0 if room in PLAIN else 1


CORE = sorted((ROOT / "ovis_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    own = layer(name_of(file))
    assert not [name for name in of_core(file) if layer(name) > own]
    assert own == 2 or not roots(file) & COMFYUI
    assert own > 0 or not roots(file) & HEAVY
    assert "nodes" not in roots(file)


def test_plain_python_loads_nothing_heavy(tmp_path: Path) -> None:
    """Whatever a library does behind an import or a call; 8 bits and bfloat16 are types that numpy does not know."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)
    arguments = [ROOT / "scripts", file, " ".join(HEAVY - {"numpy"}), *sorted(PLAIN)]
    ran = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_PLAIN, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.split()) == (0, []), ran.stdout + ran.stderr


@pytest.mark.parametrize("file", [file for file in CORE if file.parent.name == "networks"], ids=name_of)
def test_networks_need_nothing_but_their_numbers(file: Path) -> None:
    assert not [name for name in of_core(file) if not name.startswith("ovis_core.networks") and layer(name) > 0]


@pytest.mark.parametrize("file", [*NODES, *CORE], ids=name_of)
def test_what_is_private_stays_in_its_file(file: Path) -> None:
    names = [name.rsplit(".", 1)[-1] for name in of_core(file)]
    tree = parsed(file)
    taken = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_import(node.value, names)]
    assert not [name for name in names + taken if name.startswith("_") and not name.startswith("__")]


def plan() -> dict[str, int]:
    """Row of each word on the plan, by the room that it stands in and itself, as "native.clip"."""
    rows: dict[str, int] = {}
    room = ""
    _, drawn, *_ = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")
    for number, line in enumerate(drawn.splitlines()):
        side, label, words = re.fullmatch(r" *(\|?) *(?:(\w+)/)?(.*)", line).groups()
        room = label or (room if side else "ovis_core")
        for word in re.findall(r"\w+", words):
            rows.setdefault(f"{room}.{word}", number)
    return rows


def on_plan(module: str) -> str:
    """What the plan calls a module, or what is imported from it."""
    room, *inner = module.split(".")
    return ".".join(inner[:2] if inner[:1] in (["native"], ["networks"]) else [room, *inner[:1]])


@pytest.mark.parametrize("file", [file for file in [*NODES, *CORE] if file.stem != "__init__"], ids=name_of)
def test_every_file_is_on_the_plan_above_what_it_imports(file: Path) -> None:
    rows = plan()
    own = rows[on_plan(name_of(file))]
    assert not [name for name in of_core(file) if rows.get(on_plan(name), own) < own]


def is_import(value: ast.expr, names: list[str]) -> bool:
    return isinstance(value, ast.Name) and value.id in names


def test_every_node_checks_its_inputs() -> None:
    found = [node for file in NODES for node in ast.walk(parsed(file)) if isinstance(node, ast.FunctionDef)]
    executes = [node for node in found if node.name == "execute"]
    assert len(executes) > 10
    for node in executes:
        assert [ast.unparse(decorator) for decorator in node.decorator_list] == ["classmethod", "checked"]


def test_unit_tests_need_no_comfyui() -> None:
    for file in (ROOT / "tests" / "unit").rglob("*.py"):
        assert not roots(file) & COMFYUI, file
        assert not [name for name in of_core(file) if layer(name) == 2], file
        taken = [argument.arg for argument in ast.walk(parsed(file)) if isinstance(argument, ast.arg)]
        assert not {"comfyui", "loaded", "server", "info"} & {*taken}, file


def test_tests_that_are_named_exist() -> None:
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/*.md")]
    named = {name for file in files for name in re.findall(r"tests/[\w/]+\.py", file.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


# What the scanners of a registry look for in a pack: programs that are started, and code that comes as data.
STARTERS = {"subprocess", "multiprocessing", "runpy", "pty", "ctypes", "pickle", "marshal", "base64", "code", "pip"}
CALLS = re.compile(r"\b(eval|exec|__import__)\(|\bos\.(system|popen|exec\w*|spawn\w*|posix_spawn|fork)\b")


def test_what_is_delivered_starts_nothing() -> None:
    ignored = GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    sources = [file for folder in ("nodes", "ovis_core", "scripts") for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in [ROOT / "__init__.py", *sources] if not ignored.match_file(file.relative_to(ROOT))]
    assert len(files) > 40
    for file in files:
        assert not roots(file) & STARTERS, file
        assert not CALLS.search(file.read_text(encoding="utf-8")), file


def test_sources_can_be_read_on_windows() -> None:
    """Tools there open them as cp1252."""
    folders = ("nodes", "ovis_core", "scripts", "benchmarks", "evaluation", "small_model", "tests")
    for file in [ROOT / "__init__.py", *(file for folder in folders for file in (ROOT / folder).rglob("*.py"))]:
        file.read_text(encoding="utf-8").encode("cp1252")


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]], ids=lambda command: command[0])
def test_ruff(command: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ruff", *command, str(ROOT)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout
