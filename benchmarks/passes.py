"""Counts a decoder pass at full size without running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from counting import Counts, counting
from full_size import FULL

TEXT = 330  # tokens of a prompt about a blank picture of 1024 x 1024
# (name, latent size, whether a reference image takes part)
PASSES = (("text to image, 1024x1024", 128, False), ("edit, 992x992", 124, True))


def count_passes(code: Path | None) -> Iterator[tuple[str, str, Counts]]:
    """(pass, variant, counts) at full size in bfloat16; `code`: a release's folder, for the authors' decoder too."""
    import comfy.ops

    from ovis_core.native.diffusion_model import DiffusionModel

    half = torch.bfloat16
    # Fake tensors, because attention on meta tensors would be split into its operations.
    with FakeTensorMode(), torch.no_grad():
        ours = DiffusionModel(dtype=half, operations=comfy.ops.disable_weight_init, **asdict(FULL.decoder))
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
