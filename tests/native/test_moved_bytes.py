"""The weights that each task loads, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ovis_core.text.decoding import GREEDY
from ovis_core.weights.checkpoint import open_model

WITHOUT_VISION = {"language": 1.0, "vision": 0.0, "decoder": 0.0, "vae": 0.0}
SEEING = {"language": 1.0, "vision": 1.0, "decoder": 0.0, "vae": 0.0}
ALL = dict.fromkeys(SEEING, 1.0)


@pytest.fixture
def parts(comfyui: Path, release: Path) -> Iterator[Any]:
    """MODEL, CLIP and VAE, not loaded yet."""
    from comfy import model_management

    from ovis_core.native.loading import load

    found = load(open_model(release))
    model_management.unload_all_models()  # a CLIP that runs where it is built is loaded at once
    yield found
    model_management.unload_all_models()


def shares(model: Any, clip: Any, vae: Any) -> dict[str, float]:
    """The share of each part's bytes, in layers that hold their own weights, that ComfyUI has loaded."""
    text = clip.cond_stage_model

    def share(*networks: nn.Module) -> float:
        found = [
            (sum(weight.nbytes for weight in layer.parameters(recurse=False)), layer)
            for network in networks
            for layer in network.modules()
            if hasattr(layer, "comfy_cast_weights")
        ]
        whole = sum(size for size, _ in found)
        return sum(size for size, layer in found if getattr(layer, "comfy_patched_weights", False)) / whole

    return {
        "language": share(text.llm),
        "vision": share(text.visual_tokenizer),
        "decoder": share(model.model.diffusion_model),
        "vae": share(vae.first_stage_model),
    }


def picture() -> Tensor:
    return torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(0))


def ask(clip: Any, *pictures: Tensor) -> str:
    from ovis_core.native.understanding import understand

    return understand(clip, "Hello", pictures, (), 8, 4, False, GREEDY).text


def test_text_to_image_loads_each_part(parts: Any) -> None:
    """The prompt contains a blank picture of the target size, so the visual tokenizer is needed."""
    from ovis_core.native.conditions import text_to_image
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sample

    model, clip, vae = parts
    assert shares(*parts) == dict.fromkeys(ALL, 0.0)
    positive, negative = text_to_image(clip, "a cute cat", "", 64, 64)
    assert shares(*parts) == SEEING
    guider = OvisGuider(model, positive, negative, 5.0)
    latent = sample(guider, {"samples": torch.zeros(1, 4, 8, 8)}, 0, "euler", "ovis_u1", 1, 1.0)
    assert shares(*parts) == SEEING | {"decoder": 1.0}
    vae.decode(latent["samples"])
    assert shares(*parts) == ALL


def test_an_edit_loads_each_part(parts: Any) -> None:
    from ovis_core.native.conditions import edit
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sample

    model, clip, vae = parts
    positive, image_only, negative, latent = edit(clip, vae, picture()[None], "make it red")
    assert shares(*parts) == SEEING | {"vae": 1.0}
    sample(OvisGuider(model, positive, negative, 6.0, image_only, 1.5), latent, 0, "euler", "ovis_u1", 1, 1.0)
    assert shares(*parts) == ALL


def test_a_question_about_a_picture_does_not_load_the_decoder(parts: Any) -> None:
    ask(parts[1], picture())
    assert shares(*parts) == SEEING


def test_a_question_without_a_picture_does_not_load_the_visual_tokenizer(parts: Any) -> None:
    from comfy import model_management

    _, clip, _ = parts
    text = ask(clip)
    assert shares(*parts) == WITHOUT_VISION
    whole = model_management.module_size(clip.cond_stage_model)
    vision = model_management.module_size(clip.cond_stage_model.visual_tokenizer)
    assert clip.patcher.loaded_size() == whole - vision
    assert clip.patcher.model_size() == whole
    names = list(clip.get_sd())
    assert ask(clip) == text
    assert shares(*parts) == WITHOUT_VISION
    seen = ask(clip, picture())
    assert shares(*parts) == SEEING
    assert clip.patcher.loaded_size() == whole
    assert ask(clip) == text  # and it stays
    assert shares(*parts) == SEEING
    assert list(clip.get_sd()) == names
    model_management.unload_all_models()
    assert shares(*parts) == dict.fromkeys(ALL, 0.0)
    assert ask(clip, picture()) == seen


def test_a_patch_on_the_visual_tokenizer_waits_for_a_picture(parts: Any) -> None:
    from comfy import model_management

    _, clip, _ = parts
    key = next(k for k, v in clip.cond_stage_model.state_dict().items() if k.startswith("visual") and v.ndim == 2)
    before = clip.cond_stage_model.state_dict()[key].clone()
    patched = clip.clone()
    patched.add_patches({key: ("diff", (torch.ones_like(before),))}, 1.0)
    ask(patched)
    assert torch.equal(clip.cond_stage_model.state_dict()[key], before)
    ask(patched, picture())
    assert torch.equal(clip.cond_stage_model.state_dict()[key], before + 1)
    model_management.unload_all_models()
    assert torch.equal(clip.cond_stage_model.state_dict()[key], before)


def test_the_text_encoder_runs_on_the_cpu_by_cores_node(parts: Any) -> None:
    """Select CLIP Device, if ComfyUI has it. Here the CPU is also the default, so only the path is shown."""
    nodes = pytest.importorskip("comfy_extras.nodes_multigpu", reason="this ComfyUI has no Select CLIP Device")
    if not hasattr(nodes, "SelectCLIPDeviceNode"):
        pytest.skip("this ComfyUI has no Select CLIP Device")
    _, clip, _ = parts
    chosen = nodes.SelectCLIPDeviceNode.execute(clip, "cpu")[0]
    cpu = torch.device("cpu")
    assert (chosen.patcher.load_device, chosen.patcher.offload_device) == (cpu, cpu)
    assert ask(chosen, picture()) == ask(clip, picture())
    for patcher in (chosen.patcher, clip.patcher):
        assert patcher.clone().load_device == patcher.load_device
