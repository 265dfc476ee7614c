"""Fixtures: the small model's weights, the authors' results for it, and ComfyUI itself."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

# Threads that spin while they wait become many times slower if two processes share a few cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Code that torch compiled in one environment does not match the headers of another.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"inductor_{Path(sys.prefix).name}"))

# A model in the user's Hugging Face cache would be listed.
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "ovis_u1_empty_cache")
for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
    os.environ.pop(variable, None)

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "evaluation"))
sys.path.insert(0, str(ROOT / "tests"))
sys.path.append(str(ROOT / "small_model"))

from import_core import import_core  # noqa: E402

CORE = import_core()

import make_checkpoint  # noqa: E402
import workspace  # noqa: E402
from comfy_server import ComfyServer  # noqa: E402
from features.training import write_dataset  # noqa: E402
from helpers.device import DEVICE_ARGS, FLAGS  # noqa: E402
from helpers.paths import GOLDEN, comfyui_path  # noqa: E402


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process whole files, whose tests share servers, and one of them all of evaluation/: a run on several
    workers joins any Ray cluster of this machine.
    """
    from xdist.scheduler import LoadFileScheduling

    class Files(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "evaluation" if "evaluation/" in file else file

    return Files(config, log)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    return json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def raw_config() -> dict[str, Any]:
    return json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def config(raw_config: dict[str, Any]) -> Any:
    return CORE.weights.config.read_config(raw_config)


@pytest.fixture(scope="session")
def weights(config: Any) -> dict[str, Tensor]:
    """Every tensor of the small model, by the release's names."""
    named = CORE.weights.layout.tensor_shapes(config)
    return {name: torch.from_numpy(make_checkpoint.tensor(name, shape)) for name, shape in named}


@pytest.fixture(scope="session")
def text_model(config: Any, weights: dict[str, Tensor]) -> Any:
    """Language model and visual tokenizer in plain torch."""
    from ovis_core.multimodal import Multimodal

    model = Multimodal(config)
    parts = (CORE.weights.layout.LANGUAGE, CORE.weights.layout.VISION, CORE.weights.layout.TABLE)
    model.load_state_dict({name: value for name, value in weights.items() if name.startswith(parts)})
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def release(raw_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as a release folder."""
    return make_checkpoint.write_release(tmp_path_factory.mktemp("models") / "tiny", raw_config)


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """ComfyUI, importable in this process."""
    path = comfyui_path()
    sys.path.insert(0, str(path))
    import comfy.cli_args

    for flag in FLAGS:
        setattr(comfy.cli_args.args, flag, True)
    return path


@pytest.fixture(scope="session")
def qwen25_tokenizer() -> Path:
    """The tokenizer files that every ComfyUI has."""
    return comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer"


@pytest.fixture(scope="session")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A running ComfyUI with the pack and the small model, in the folders in which users keep models."""
    base = workspace.make_base(tmp_path_factory.mktemp("comfyui"), ROOT, comfyui_path())
    models = base / "models"
    workspace.link_folder(release, models / "ovis_u1" / "tiny")
    half = Path(shutil.copytree(release, models / "ovis_u1" / "half"))
    (half / "model-00002-of-00002.safetensors").unlink()
    workspace.link_folder(release, models / "ovis" / "whole")
    workspace.link_folder(half, models / "ovis" / "part")
    elsewhere = tmp_path_factory.mktemp("extra")
    workspace.link_folder(release, elsewhere / "elsewhere")
    another = tmp_path_factory.mktemp("another")
    workspace.link_folder(release, another / "AIDC-AI" / "inside")
    workspace.link_folder(ROOT / "tests" / "helpers" / "other_pack", base / "custom_nodes" / "other_pack")
    write_dataset(base / "input")
    paths = base / "extra_model_paths.yaml"
    paths.write_text(json.dumps({"other": {"ovis_u1": str(elsewhere), "ovis": str(another)}}), encoding="utf-8")
    args = [*DEVICE_ARGS, "--extra-model-paths-config", str(paths)]
    with ComfyServer(comfyui_path(), base, args) as running:
        yield running


@pytest.fixture(scope="session")
def info(server: ComfyServer) -> dict[str, Any]:
    """The running ComfyUI's description of its nodes."""
    return server.object_info()
