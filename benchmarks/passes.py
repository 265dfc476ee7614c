"""What is known of the decoder without running it: the kernels of a pass at full size, the graphs of torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from counting import Counts, counting
from full_size import FULL, NARROW

TEXT = 330  # tokens of a prompt about a blank picture of 1024 x 1024
# (name, latent size, whether a reference image takes part)
PASSES = (("text to image, 1024x1024", 128, False), ("edit, 992x992", 124, True))


def count_passes(code: Path | None) -> Iterator[tuple[str, str, Counts]]:
    """(pass, side, counts) at full size in bfloat16; `code`: also of the authors' decoder in this release's folder."""
    import comfy.ops

    from ovis_core.native.model import NativeDecoder

    half = torch.bfloat16
    # Fake tensors and not meta ones, on which attention would be taken apart.
    with FakeTensorMode(), torch.no_grad():
        ours = NativeDecoder(dtype=half, operations=comfy.ops.disable_weight_init, **asdict(FULL.decoder))
        authors = _authors_decoder(code, half) if code else None
        for name, size, has_reference in PASSES:
            x, t = torch.empty(1, 4, size, size, dtype=half), torch.empty(1, dtype=half)
            condition = torch.empty(1, TEXT, FULL.decoder.context_in_dim, dtype=half)
            references = [x] if has_reference else None
            context, y = ours.refine(condition)
            yield name, "ours", _counted(ours, x, t, context, y, references)
            if authors:
                from reference import velocity

                reference = x if has_reference else None
                yield name, "authors", _counted(velocity, authors, x, 0.5, condition, reference)
        yield "refiner, once a condition and not each pass", "ours", _counted(ours.refine, condition)


def _counted(run: Callable[..., Any], *args: Any) -> Counts:
    with counting() as counts:
        run(*args)
    return counts


def _authors_decoder(code: Path, dtype: torch.dtype) -> Any:
    from reference import authors

    config = authors(code, "configuration_yak").YakConfig(**asdict(FULL.decoder))
    torch.set_default_dtype(dtype)
    try:
        return authors(code, "modeling_yak").YakTransformer(config)
    finally:
        torch.set_default_dtype(torch.float32)


def compiled_graphs(folder: Path, tokenizer: Path) -> Iterator[tuple[str, dict[str, int]]]:
    """What torch.compile makes of sampling runs, through the wrapper of ComfyUI's TorchCompileModel.

    The whole decoder, then block by block, as packs compile it: after each run (its name, graphs and graph breaks so
    far). On a small model, and with the part of torch.compile that traces alone.
    """
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    from full_size import write_release
    from sides import Ours, Picture

    small = replace(NARROW, decoder=replace(NARROW.decoder, depth=1, depth_single_blocks=1))
    write_release(small, folder, torch.float32, tokenizer)
    ours = Ours(folder)
    runs = {
        "first run": Picture(64, 64),
        "again": Picture(64, 64),
        "second size": Picture(96, 64),
        "third size": Picture(128, 96),
        "fourth size": Picture(160, 64),
        "fifth size": Picture(96, 192),
        "edit": Picture(64, 64, edit=True),
        "batch of 2": Picture(128, 128, batch=2),
        "batch of 3": Picture(64, 64, batch=3),
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
