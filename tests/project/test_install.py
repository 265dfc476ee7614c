"""The registry's archive, installed together with other packs in folders of any name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pathspec import GitIgnoreSpec

import workspace
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS
from helpers.graphs import load, saved_image, text_to_image
from helpers.imports import roots
from helpers.paths import ROOT, comfyui_path
from ovis_core.weights import built_in
from workspace.environment import pack_requirements

HOOKS = ".pre-commit-config.yaml"
FOLDER = "Ovis U1 (über) v2.0"
# Packages that ComfyUI or torch require, and those that the pack also works without: certificates if Python has none,
# and the hub's fast client.
PACKAGES = {"av", "einops", "filelock", "numpy", "PIL", "safetensors", "tokenizers", "torch"}
OPTIONAL = {"certifi", "comfy_kitchen", "hf_xet"}
NODES = {file.stem for file in (ROOT / "web" / "docs").glob("*.md")}
HELPERS = {"_OvisU1ImproveStep", "_OvisU1ImproveResult"}  # nodes that the page does not offer
# Names of the nodes in packs that wrap the authors' script.
TAKEN = {"OvisU1ModelLoader", "OvisU1TextToImage", "OvisU1ImageToText", "OvisU1ImageEdit", "LoadOvisU1Model"}
WRAPPER = f"""
import sys, types
sys.modules["ovis_core"] = types.ModuleType("ovis_core")  # somebody else's module of our core's name
class Node:
    RETURN_TYPES, FUNCTION, CATEGORY = ("OVIS_MODEL",), "run", "Ovis-U1"
    INPUT_TYPES = classmethod(lambda cls: {{"required": {{}}}})
    def run(self): return (None,)
NODE_CLASS_MAPPINGS = dict.fromkeys({sorted(TAKEN)!r}, Node)
"""


def archive(folder: Path) -> Path:
    """The files that `comfy node pack` puts into the registry's archive, in a folder."""
    ignored = [line for name in (".gitignore", ".comfyignore") for line in (ROOT / name).read_text().splitlines()]
    spec = GitIgnoreSpec.from_lines([*ignored, ".git/", ".git"])
    for name in spec.match_tree_files(ROOT, negate=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def tree(folder: Path) -> dict[Path, tuple[int, int]]:
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*")}


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(tmp_path_factory.mktemp("archive") / FOLDER)


def make_base(folder: Path, pack: Path | None, release: Path) -> Path:
    """A base directory whose own name is odd too, with a pack that wraps the authors' script."""
    base = folder / "ComfyUI (neu) #1"
    other = base / "custom_nodes" / "ComfyUI-Ovis-U1"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text(WRAPPER, encoding="utf-8")
    workspace.link_folder(release, base / "models" / "ovis_u1" / "tiny")
    if pack is not None:
        shutil.copytree(pack, base / "custom_nodes" / FOLDER)
    return base


@pytest.fixture(scope="module")
def installed(pack: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = make_base(tmp_path_factory.mktemp("installed"), pack, release)
    with ComfyServer(comfyui_path(), base, DEVICE_ARGS) as running:
        yield running


def test_pack_loads_in_half_a_second_and_50_mb(
    installed: ComfyServer, release: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    taken = re.search(rf"([\d.]+) seconds: .*{re.escape(FOLDER)}", installed.log_text())
    assert taken is not None
    assert float(taken[1]) <= 0.5
    bare = make_base(tmp_path_factory.mktemp("bare"), None, release)
    with ComfyServer(comfyui_path(), bare, DEVICE_ARGS) as without:
        least = psutil.Process(without.pid).memory_info().rss
    assert psutil.Process(installed.pid).memory_info().rss - least < 50 * 2**20


def test_pack_logs_one_line(installed: ComfyServer) -> None:
    (said,) = [line for line in installed.log_text().splitlines() if "Ovis-U1:" in line]
    assert said.endswith(f"Ovis-U1: the nodes are loaded; put models into {installed.base / 'models' / 'ovis_u1'}.")


def test_nodes_load_together_with_another_pack(installed: ComfyServer) -> None:
    info = installed.object_info()
    assert info.keys() >= TAKEN
    assert {name for name, node in info.items() if FOLDER in node["python_module"]} == NODES | HELPERS
    assert not NODES & TAKEN


def test_pack_runs_and_writes_nothing_into_its_folder(installed: ComfyServer, pack: Path) -> None:
    folder = installed.base / "custom_nodes" / FOLDER
    before = tree(folder)
    assert len(before) == len(tree(pack))
    info = installed.object_info()
    graph = text_to_image(info, steps=2)
    assert saved_image(installed, installed.run(graph.prompt), graph).size == (128, 96)
    graph = load("chat", info).set_all("OvisU1Understand", max_new_tokens=4)
    (installed.base / "input").mkdir(exist_ok=True)
    installed.upload(ROOT / "docs" / "edit.png")
    installed.run(graph.set("LoadImage", image="edit.png").prompt)
    assert tree(folder) == before


def test_archive_contains_only_what_users_need(pack: Path) -> None:
    have = {path.relative_to(pack).as_posix() for path in pack.rglob("*") if path.is_file()}
    model = {path for path in have if path.startswith("small_model/")}
    assert model == ({built_in.FILE.relative_to(ROOT).as_posix()} if built_in.is_there() else set())
    assert sum((pack / path).stat().st_size for path in model) <= 12 * 2**20
    have -= model
    assert {path.split("/")[0] for path in have} == {
        *("__init__.py", "nodes", "ovis_core", "web", "locales", "workflows", "subgraphs", "docs", "scripts", "tests"),
        *("README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml"),
    }
    assert {path for path in have if path.startswith("tests/")} == {
        "tests/golden/README.md",
        "tests/golden/config.json",
    }
    assert sum((pack / path).stat().st_size for path in have) < 5 * 2**20


@pytest.mark.parametrize("command", ["make_checkpoint.py", "convert.py", "download.py"])
def test_scripts_of_the_archive_start(pack: Path, command: str) -> None:
    line = [sys.executable, str(pack / "scripts" / command), "--help"]
    ran = subprocess.run(line, capture_output=True, text=True, check=False, env={"PYTHONDONTWRITEBYTECODE": "1"})
    assert ran.returncode == 0, ran.stderr
    assert "usage" in ran.stdout


# Copies of the pack that cannot be imported: the file, the line in it that is replaced, and the new line.
BROKEN = {
    "no package": ("ovis_core/pixels.py", "import torch\n", "import nobody_s\n"),
    "no module": ("nodes/load.py", "from comfy_api.latest import io\n", "from comfy_api.nobody_s import io\n"),
    "no name": ("nodes/load.py", "from comfy_api.latest import io\n", "from comfy_api.latest import nobody_s\n"),
    "no part": ("ovis_core/native/compat.py", "import comfy.quant_ops\n", "import comfy.nobody_s\n"),
    "no attribute": ("ovis_core/native/compat.py", "import comfy.quant_ops\n", "comfy.ops.nobody_s\n"),
}


@pytest.fixture(scope="module")
def broken(pack: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The line that a ComfyUI with all of `BROKEN` logs for each of them."""
    base = make_base(tmp_path_factory.mktemp("broken"), None, release)
    for name, (file, old, new) in BROKEN.items():
        changed = Path(shutil.copytree(pack, base / "custom_nodes" / f"{FOLDER} {name}")) / file
        text = changed.read_text(encoding="utf-8")
        assert old in text
        changed.write_text(text.replace(old, new), encoding="utf-8")
    with ComfyServer(comfyui_path(), base, DEVICE_ARGS) as running:
        nodes, log = set(running.object_info()), running.log_text()
    assert nodes >= TAKEN
    assert not NODES & nodes
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if "nobody_s" in line or "Ovis-U1: ComfyUI" in line]
    found = {name: line for name in BROKEN for line in lines if f"{FOLDER} {name}" in line}
    assert sorted(found.values()) == sorted(lines)
    return found


def test_error_for_a_missing_package_is_one_line(broken: dict[str, str]) -> None:
    """In a copy of the pack that imports a package which does not exist."""
    assert "nobody_s" in broken["no package"]
    assert "update" not in broken["no package"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no module", "No module named"),
        ("no name", "cannot import"),
        ("no part", "No module named"),
        ("no attribute", "module 'comfy.ops'"),
    ],
)
def test_error_for_a_comfyui_without_a_part_is_one_line(broken: dict[str, str], name: str, reason: str) -> None:
    """In a copy of the pack that imports a part which no ComfyUI has."""
    version = workspace.describe_comfyui(comfyui_path(), "").version
    assert f"Ovis-U1: ComfyUI {version} lacks something that the pack needs ({reason}" in broken[name]
    assert "; update ComfyUI to 0.3.75 or newer, or the pack if ComfyUI is newer." in broken[name]


def test_error_for_a_comfyui_without_comfy_entrypoint() -> None:
    """A ComfyUI without `comfy_entrypoint`, which still imports the pack."""
    script = f"""
import importlib.util, sys
root = {str(ROOT)!r}
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
"""
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    (said,) = ran.stderr.splitlines()
    assert "Ovis-U1: expected ComfyUI 0.3.75 or newer, got an older one; update ComfyUI." in said


def test_oldest_comfyui_is_the_same_everywhere() -> None:
    (oldest,) = re.findall(r'^COMFYUI = "([\d.]+)"', (ROOT / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    for page in ("README.md", "pyproject.toml"):
        assert oldest in (ROOT / page).read_text(encoding="utf-8"), page


def test_pack_imports_only_comfyui_s_packages() -> None:
    files = [*ROOT.glob("nodes/*.py"), *ROOT.glob("ovis_core/**/*.py")]
    found = set().union(*map(roots, files)) - set(sys.stdlib_module_names)
    own = {"ovis_core", "nodes"}
    comfyui = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "node_helpers", "server", "comfy_execution"}
    assert found - own - comfyui == PACKAGES | OPTIONAL


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))])
def test_links_between_pages_have_targets(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        name, _, heading = link.partition("#")
        target = ROOT / Path(page).parent / name if name else ROOT / page
        assert target.is_file(), link
        if heading:
            lines = target.read_text(encoding="utf-8").splitlines()
            headings = {line.lstrip("# ").lower().replace(" ", "-") for line in lines if line.startswith("#")}
            assert heading in headings, link


@pytest.mark.skipif(sys.platform != "linux", reason="the workflow runs on Linux")
def test_readme_of_the_registry_has_absolute_links(tmp_path: Path) -> None:
    """With the commands of the publish workflow."""
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if "at=" in line or "$at/" in line]
    shutil.copy(ROOT / "README.md", tmp_path)
    at = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "owner/name", "GITHUB_SHA": "abc"}
    subprocess.run(["sh", "-ec", "\n".join(lines)], check=True, cwd=tmp_path, env={**os.environ, **at})
    links = re.findall(r"\]\(([^)]+)\)", (tmp_path / "README.md").read_text(encoding="utf-8"))
    assert "https://example.org/owner/name/raw/abc/docs/text_to_image.png" in links
    assert all(link.startswith("https://") for link in links)


def test_pack_has_no_requirements() -> None:
    assert pack_requirements(tests=False) == []
    assert not (ROOT / "requirements.txt").exists()


def test_ruff_version_is_the_same_everywhere() -> None:
    ruffs = [re.findall(r"ruff==([\d.]+)", (ROOT / name).read_text()) for name in ("pyproject.toml", HOOKS)]
    assert len({version for found in ruffs for version in found}) == 1


@pytest.mark.parametrize("lacks", ["custom_op", "infer_schema"])
def test_pack_imports_with_older_torch(lacks: str) -> None:
    """While the pack is imported torch has no custom operators (2.3), or cannot read annotations like ours (2.4)."""
    files = [file for file in (ROOT / "ovis_core").rglob("*.py") if "native" not in file.relative_to(ROOT).parts]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files if file.stem != "__init__"]
    script = f"""
import sys, torch
kept = torch.library.{lacks}
del torch.library.{lacks}, torch.OutOfMemoryError
sys.path.insert(0, {str(ROOT / "scripts")!r})
import import_core
import_core.import_core()
from importlib import import_module
for name in {modules!r}:
    import_module(name)
from ovis_core.networks import positions
torch.library.{lacks} = kept
layout = 3, [0, 2, 2], [16, 24, 24], 1e4, torch.device("cpu")
plain = positions.layout_table(3, [(0, 2, 2)], layout[4], layout[2], layout[3])
assert torch.equal(positions.compiled_table(*layout), plain)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    core = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "ovis_core").rglob("*.py"))
    assert "torch.OutOfMemoryError" not in core  # torch.cuda's is the same, and older


def test_pack_imports_no_package_that_comfyui_has_not_imported() -> None:
    """In its own process, until the nodes are ready."""
    script = f"""
import asyncio, importlib.util, sys
sys.path.insert(0, {str(comfyui_path())!r})
import comfy.cli_args
comfy.cli_args.args.cpu = True
import utils.extra_config, nodes, server, comfy_api.latest, comfy_extras.nodes_custom_sampler
before = set(sys.modules)
root = {str(ROOT)!r}
spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)
async def load():
    return await (await pack.comfy_entrypoint()).get_node_list()
print(len([node.GET_SCHEMA() for node in asyncio.run(load())]), *set(sys.modules) - before)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=comfyui_path()
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    count, *new = ran.stdout.splitlines()[-1].split()
    assert int(count) == len(NODES | HELPERS)
    assert {name.split(".")[0] for name in new} - set(sys.stdlib_module_names) == {"pack"}
