"""The rules for the code: direction of imports, and style."""

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
# Modules of ovis_core that need only Python.
PLAIN = {"special_tokens", "text", "text.prompts", "sizes", "schedule", "weights", "__init__"}
PLAIN |= {"improvement", "improvement.rounds"}
PLAIN |= {f"weights.{name}" for name in ("config", "layout", "release", "release_folder", "safetensors_file")}
PLAIN |= {f"weights.{name}" for name in ("components", "layer_formats", "recognition")}
PLAIN |= {f"weights.{name}" for name in ("download", "file_fetcher", "checked_files", "hub", "hub_cache", "built_in")}
# Imports the named modules and reads a file's header; prints the modules of HEAVY that were imported. safetensors
# itself imports numpy.
LOAD_PLAIN = """
import sys
from importlib import import_module
from pathlib import Path

scripts, file, heavy, *plain = sys.argv[1:]
sys.path.insert(0, scripts)
__import__("import_core").import_core()
for name in plain:
    import_module(f"ovis_core.{name}")
assert import_module("ovis_core.weights.safetensors_file").read_entries(Path(file))
print(*sorted({*heavy.split()} & {*sys.modules}))
"""


def of_core(file: Path) -> set[str]:
    return {name for name in imported(file) if name.split(".")[0] == "ovis_core"}


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def layer(module: str) -> int:
    """The layer of a module of ovis_core: 2 uses ComfyUI, 1 is plain torch, 0 plain Python."""
    name = on_plan(module).removeprefix("ovis_core").removeprefix(".") or "__init__"
    return 2 if name.split(".")[0] == "native" else 0 if name.removesuffix(".__init__") in PLAIN else 1


CORE = sorted((ROOT / "ovis_core").rglob("*.py"))
NODES = sorted((ROOT / "nodes").rglob("*.py"))


@pytest.mark.parametrize("file", CORE, ids=name_of)
def test_imports_go_down_the_layers(file: Path) -> None:
    own = layer(name_of(file))
    assert not [name for name in of_core(file) if layer(name) > own]
    assert own == 2 or not roots(file) & COMFYUI
    assert own > 0 or not roots(file) & HEAVY
    assert "nodes" not in roots(file)


def test_plain_python_modules_import_no_torch(tmp_path: Path) -> None:
    """Also not inside a library's import or call; numpy does not have 8-bit floats and bfloat16."""
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)
    arguments = [ROOT / "scripts", file, " ".join(HEAVY - {"numpy"}), *sorted(PLAIN)]
    ran = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_PLAIN, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout.split()) == (0, []), ran.stdout + ran.stderr


@pytest.mark.parametrize("file", [file for file in CORE if file.parent.name == "networks"], ids=name_of)
def test_networks_import_only_plain_python_and_each_other(file: Path) -> None:
    assert not [name for name in of_core(file) if not name.startswith("ovis_core.networks") and layer(name) > 0]


@pytest.mark.parametrize("file", [*NODES, *CORE], ids=name_of)
def test_private_names_are_not_used_in_other_files(file: Path) -> None:
    names = [name.rsplit(".", 1)[-1] for name in of_core(file)]
    tree = parsed(file)
    taken = [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and is_import(node.value, names)]
    assert not [name for name in names + taken if name.startswith("_") and not name.startswith("__")]


def plan() -> dict[str, int]:
    """The row of each word on the plan, by its folders and itself, such as "native.layers.filling" or "nodes.load".

    A folder's name ends with a slash. The rows of its files below it have a bar in the column where its name begins.
    """
    rows: dict[str, int] = {}
    folders: dict[int, str] = {}  # column -> the last folder whose name begins there
    _, drawn, *_ = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")
    for number, line in enumerate(drawn.splitlines()):
        inside: list[str] = []
        for part in re.finditer(r"(\w+)(/?)|\|", line):
            if part[2]:
                folders[part.start()] = part[1]
            if part[2] or part[0] == "|":
                inside += [folders[part.start()]] if part.start() in folders else []
            else:
                rows.setdefault(".".join([*(inside or ["ovis_core"]), part[1]]), number)
    return rows


def on_plan(module: str) -> str:
    """The plan's name of a module, or of an import from it."""
    package, *inner = module.split(".")
    depth = 0
    while depth < len(inner) and (ROOT / package).joinpath(*inner[: depth + 1]).is_dir():
        depth += 1
    return ".".join(inner[: depth + 1] if depth else [package, *inner[:1]])


@pytest.mark.parametrize("file", [file for file in [*NODES, *CORE] if file.stem != "__init__"], ids=name_of)
def test_files_are_on_the_plan_above_their_imports(file: Path) -> None:
    rows = plan()
    own = rows[on_plan(name_of(file))]
    assert not [name for name in of_core(file) if rows.get(on_plan(name), own) < own]


COMPAT = "ovis_core.native.compat"
# Questions that other files may ask, because they are not about what this ComfyUI has.
OTHER_QUESTIONS = {
    # values from links or other packs' nodes, and the inputs of a node's own `execute`
    "nodes.checks": {"model", "cond_stage_model", "first_stage_model", "signature"},
    "ovis_core.native.core_inputs": {"__len__", "ndim"},
    "ovis_core.native.patch_checks": {"__module__", "signature"},
    # attributes of a layer, which every version sets
    "ovis_core.native.layers.partial_loading": {"comfy_patched_weights", "prev_comfy_cast_weights", "ovis_u1_casts"},
    # an attribute that another copy of the pack has set
    "ovis_core.native.wrapped_core.wrapping": {"CURRENT"},
}
INSPECT = {"signature", "getfullargspec", "getattr_static", "find_spec", "import_module", "__dataclass_fields__"}
# The others need an object of ComfyUI, which only files in `native` have.
WITHOUT_COMFYUI = {"find_spec", "import_module", "import", "comfyui_version"}


def questions(source: str) -> set[str]:
    """The questions that a file asks about objects and modules that can differ between versions.

    The attribute of a `hasattr`, or of a `getattr` with a default; the names in `INSPECT`; "import" if a failed import
    of ComfyUI's, or an attribute that is missing, is caught; "comfyui_version" if that is imported.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "hasattr" or (node.func.id == "getattr" and len(node.args) > 2):
                asked = node.args[1]
                names = [part.id for part in ast.walk(asked) if isinstance(part, ast.Name)]
                found.add(asked.value if isinstance(asked, ast.Constant) else names[0])
        elif isinstance(node, ast.Try) and misses(node):
            found.add("import")
        found |= {name for name in modules(node) if name.split(".")[0] == "comfyui_version"}
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            found |= {name} & INSPECT
    return found


def misses(tried: ast.Try) -> bool:
    """Whether a `try` catches that an attribute, or a module of ComfyUI's, is missing."""
    caught = {"BaseException"} if any(handler.type is None for handler in tried.handlers) else set()
    for handler in tried.handlers:
        caught |= {part.id for part in ast.walk(handler.type) if isinstance(part, ast.Name)} if handler.type else set()
    imports = any(name.split(".")[0] in COMFYUI for part in tried.body for name in modules(part))
    everything = {"Exception", "BaseException"}
    return "AttributeError" in caught or (
        imports and bool(caught & {"ImportError", "ModuleNotFoundError", *everything})
    )


def modules(statement: ast.AST) -> set[str]:
    """Modules that a statement and those within it import, except relative ones."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
    return found


def asked(file: Path) -> set[str]:
    """`questions` of a file that can be about ComfyUI."""
    found = questions(file.read_text(encoding="utf-8"))
    return found if file in NODES or layer(name_of(file)) == 2 else found & WITHOUT_COMFYUI


@pytest.mark.parametrize("file", [file for file in [*NODES, *CORE] if name_of(file) != COMPAT], ids=name_of)
def test_only_compat_tests_for_features_of_comfyui(file: Path) -> None:
    assert asked(file) == OTHER_QUESTIONS.get(name_of(file), set())


@pytest.mark.parametrize(
    "offence",
    [
        "hasattr(comfy.ops, 'scaled_fp8_ops')",
        "getattr(model_management, 'supports_fp64', None)",
        "inspect.signature(comfy.sd.CLIP.__init__).parameters",
        "from inspect import signature\nsignature(comfy.sample.sample)",
        "importlib.import_module('comfy.storage')",
        "io.Schema.__dataclass_fields__",
        "try:\n    import comfy.storage\nexcept ImportError:\n    pass",
        "try:\n    from comfy import storage\nexcept (OSError, ImportError):\n    pass",
        "try:\n    from comfy_api.latest import io\nexcept:\n    pass",
        "try:\n    comfy.storage.state_dict_fast_disk\nexcept AttributeError:\n    pass",
        "from comfyui_version import __version__",
    ],
)
def test_feature_tests_are_detected(offence: str) -> None:
    assert questions(offence)


def test_other_code_is_not_a_feature_test() -> None:
    assert not questions("getattr(args, flag)\nwith suppress(ImportError):\n    import hf_xet\nx.signature_of = 1")


def test_ovis_core_has_few_modules_outside_folders() -> None:
    """At most eight modules are in `ovis_core` itself; the others are in its folders."""
    assert len([file for file in CORE if file.parent.name == "ovis_core" and file.stem != "__init__"]) <= 8


def test_file_names_are_unique() -> None:
    """Only a node's file may have the name of the module that it calls."""
    names = [file.stem for file in CORE if file.stem != "__init__"]
    assert sorted(names) == sorted(set(names))


def test_class_names_are_unique() -> None:
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in [*NODES, *CORE]]
    names = [node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert sorted(names) == sorted(set(names))


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


def test_tests_named_in_the_docs_exist() -> None:
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("benchmarks/*.md")]
    named = {name for file in files for name in re.findall(r"tests/[\w/]+\.py", file.read_text(encoding="utf-8"))}
    assert len(named) > 20
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


# A registry's scanners look for these in a pack: starting programs, and code in data.
STARTERS = {"subprocess", "multiprocessing", "runpy", "pty", "ctypes", "pickle", "marshal", "base64", "code", "pip"}
CALLS = re.compile(r"\b(eval|exec|__import__)\(|\bos\.(system|popen|exec\w*|spawn\w*|posix_spawn|fork)\b")


def test_delivered_files_start_no_processes() -> None:
    ignored = GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines())
    sources = [file for folder in ("nodes", "ovis_core", "scripts") for file in (ROOT / folder).rglob("*.py")]
    files = [file for file in [ROOT / "__init__.py", *sources] if not ignored.match_file(file.relative_to(ROOT))]
    assert len(files) > 40
    for file in files:
        assert not roots(file) & STARTERS, file
        assert not CALLS.search(file.read_text(encoding="utf-8")), file


def test_sources_are_cp1252() -> None:
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
