"""The graphs that torch.compile makes of the decoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from torch._dynamo.utils import counters

from full_size import NARROW, write_release
from native_pipeline import ImageSpec, NativePipeline


def compiled_graphs(folder: Path, tokenizer: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """Graphs and graph breaks of sampling runs, with the wrapper of ComfyUI's TorchCompileModel.

    First the whole decoder is compiled, then block by block, as packs do it. Yields (name, counts so far) after each
    run, on a small model, with the tracing part of torch.compile only.
    """
    small = replace(NARROW, decoder=replace(NARROW.decoder, depth=1, depth_single_blocks=1))
    write_release(small, folder, torch.float32, tokenizer)
    ours = NativePipeline(folder)
    runs = {
        "first run": ImageSpec(64, 64),
        "again": ImageSpec(64, 64),
        "second size": ImageSpec(96, 64),
        "third size": ImageSpec(128, 96),
        "fourth size": ImageSpec(160, 64),
        "fifth size": ImageSpec(96, 192),
        "edit": ImageSpec(64, 64, edit=True),
        "batch of 2": ImageSpec(128, 128, batch=2),
        "batch of 3": ImageSpec(64, 64, batch=3),
    }
    blocks = ["diffusion_model.double_blocks.0", "diffusion_model.single_blocks.0"]
    for name, keys in (("whole decoder", ["diffusion_model"]), ("block by block", blocks)):
        torch._dynamo.reset()
        counters.clear()
        model = ours.model.clone()
        set_torch_compile_wrapper(model=model, backend="eager", keys=keys)
        for run, picture in runs.items():
            ours.latent(replace(picture, steps=1), model)
            found = {
                "graphs": counters["stats"]["unique_graphs"],
                "breaks": sum(counters["graph_break"].values()),
            }
            yield f"{name}, {run}", found
