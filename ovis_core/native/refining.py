"""Runs the token refiner on CONDITIONING."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch

from .model import REFINED, OvisU1


def refine(patcher: comfy.model_patcher.ModelPatcher, conditioning: list[list[Any]]) -> list[list[Any]]:
    """CONDITIONING with every entry refined: tensor (B, L, hidden), `pooled_output` (B, hidden).

    Refined entries stay unchanged. So do entries with hooks, which change the refiner's weights: these are refined
    during sampling.
    """
    model: OvisU1 = patcher.model
    out, loaded = [], False
    for tensor, values in conditioning:
        if not values.get(REFINED) and values.get("hooks") is None:
            if not loaded:
                comfy.model_management.load_models_gpu([patcher])
                loaded = True
            tokens, vector = model.refine(tensor, patcher.load_device)
            keep = comfy.model_management.intermediate_device()
            tensor = tokens.to(keep, torch.float32)
            values = values | {"pooled_output": vector.to(keep, torch.float32), REFINED: True}
        out.append([tensor, values])
    return out
