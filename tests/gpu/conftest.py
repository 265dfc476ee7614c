"""Tests that need an NVIDIA GPU: `OVIS_U1_TEST_DEVICE=gpu python scripts/test.py -- tests/gpu`.

The variable moves other tests to the GPU too, such as tests/native, tests/server and tests/features.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.device import ON_GPU
from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.precision import PRECISIONS


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    if not ON_GPU:
        pytest.skip("needs an NVIDIA GPU and OVIS_U1_TEST_DEVICE=gpu")
    assert torch.cuda.is_available(), "OVIS_U1_TEST_DEVICE is gpu, but torch finds no CUDA"
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def inference(gpu: torch.device) -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def load(gpu: torch.device, comfyui: Path, release: Path) -> Any:
    """A function of a weight_dtype: MODEL, CLIP and VAE of the small model, loaded onto the GPU."""
    from comfy import model_management

    from ovis_core.native.loading import load as load_parts

    def loaded(weight_dtype: str) -> tuple[Any, Any, Any]:
        model, clip, vae = load_parts(open_model(release), PRECISIONS[weight_dtype])
        model_management.load_models_gpu([model, clip.patcher, vae.patcher])
        return model, clip, vae

    return loaded


@pytest.fixture(scope="session")
def loaded(load: Any) -> tuple[Any, Any, Any]:
    return load("fp32")
