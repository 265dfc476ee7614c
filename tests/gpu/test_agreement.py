"""Each stage on a GPU, in float32, compared with the authors' results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.compare import close
from helpers.pictures import picture
from ovis_core.pixels import to_tensor


def test_conditions(loaded: tuple[Any, ...], tensors: dict[str, Tensor]) -> None:
    from ovis_core.native.conditions import text_to_image

    positive, negative = text_to_image(loaded[1], "a cute cat", "", 128, 96)
    close(positive[0][0].cpu(), tensors["cond/t2i"])
    close(negative[0][0].cpu(), tensors["cond/uncond"])


@pytest.mark.parametrize("time", [1.0, 0.73, 0.05])
def test_decoder_pass(loaded: tuple[Any, ...], tensors: dict[str, Tensor], gpu: torch.device, time: float) -> None:
    model = loaded[0].model
    context, y = model.refine(tensors["cond/t2i"].to(gpu), gpu)
    close(context.cpu(), tensors["refiner/t2i/tokens"])
    close(y.cpu(), tensors["refiner/t2i/vector"])
    x, t = tensors["t2i/noise"].to(gpu), torch.tensor([time], device=gpu)
    velocity = (x - model.apply_model(x, t, c_crossattn=context, y=y)) / time
    close(velocity.cpu(), tensors[f"backbone/t2i/t{time}"], 5e-5 / time)  # the division enlarges rounding


def test_final_latents_and_images(loaded: tuple[Any, ...], tensors: dict[str, Tensor]) -> None:
    import comfy.samplers

    from ovis_core.native.conditions import edit, text_to_image
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.sampling import sigmas_for

    model, clip, vae = loaded
    image = to_tensor(picture(256, 192))[None]
    positive, image_only, negative, latent = edit(clip, vae, image, "add a hat to this cat.")
    runs = {
        "t2i": OvisGuider(model, *text_to_image(clip, "a cute cat", "", 128, 96), txt_cfg=5.0),
        "edit": OvisGuider(model, positive, negative, 6.0, image_only, 1.5),
    }
    assert latent["samples"].shape == tensors["edit/noise"].shape
    for name, guider in runs.items():
        noise = tensors[f"{name}/noise"]
        empty = torch.zeros_like(noise)
        euler, sigmas = comfy.samplers.sampler_object("euler"), sigmas_for(model, empty, 4, 1.0)
        found = guider.sample(noise, empty, euler, sigmas)
        final = model.model.process_latent_in(found).cpu()
        close(final, tensors[f"{name}/final_latent"], 1e-4)
        close(vae.decode(found).cpu(), tensors[f"{name}/image"], 1e-4)


def test_a_pass_does_not_wait_for_the_gpu(loaded: tuple[Any, ...], gpu: torch.device) -> None:
    model = loaded[0].model
    config = model.diffusion_model.config
    context, y = model.refine(torch.randn(1, 9, config.context_in_dim, device=gpu), gpu)
    x, t = torch.randn(1, 4, 12, 16, device=gpu), torch.ones(1, device=gpu)
    references = [torch.randn(1, 4, 12, 16, device=gpu)]
    for count in (0, 1):
        model.apply_model(x, t, c_crossattn=context, y=y, ref_latents=references[:count])
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.apply_model(x, t, c_crossattn=context, y=y, ref_latents=references[:count])
        finally:
            torch.cuda.set_sync_debug_mode("default")
