"""The loaders, the sampler and the understanding of the pack on one file, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovis_core.weights.checkpoint import open_model
from ovis_core.weights.precision import PRECISIONS


def latent_and_answer(file: Path, weight_dtype: str = "default") -> tuple[Tensor, str, Any]:
    """A latent (1, 4, 8, 8), an answer, and MODEL, CLIP and VAE."""
    from ovis_core.native.conditions import text_to_image
    from ovis_core.native.guider import OvisGuider
    from ovis_core.native.loading import load
    from ovis_core.native.sampling import sample
    from ovis_core.native.understanding import understand
    from ovis_core.text.decoding import GREEDY

    model, clip, vae = load(open_model(file), PRECISIONS[weight_dtype])
    positive, negative = text_to_image(clip, "a cute cat", "", 64, 64)
    guider = OvisGuider(model, positive, negative, 5.0)
    out = sample(guider, {"samples": torch.zeros(1, 4, 8, 8)}, 0, "euler", "ovis_u1", 2, 1.0)["samples"]
    return out, understand(clip, "Hello", (), (), 8, 4, False, GREEDY).text, (model, clip, vae)
