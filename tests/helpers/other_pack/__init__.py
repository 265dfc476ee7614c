"""Another pack, whose node returns any value over a link of any type, like nodes of some real packs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class AnyType(str):
    """A type that fits every input."""

    def __ne__(self, other: object) -> bool:
        return False


VALUES: dict[str, Any] = {
    "zero": 0,
    "minus one": -1,
    "a million": 1_000_000,
    "a word": "a word",
    "no words": "",
    "two words": ["a", "word"],
    "nothing": None,
    "another model": SimpleNamespace(model=torch.nn.Identity()),
    "another clip": SimpleNamespace(cond_stage_model=torch.nn.Identity()),
    "another vae": SimpleNamespace(first_stage_model=torch.nn.Identity(), latent_channels=16),
    "one image": torch.zeros(64, 64, 3),
    "no images": torch.zeros(0, 64, 64, 3),
    "no latent": {"noise_mask": torch.zeros(1, 8, 8)},
    "a video's latent": {"samples": torch.zeros(1, 4, 2, 8, 8)},
    "a tiny latent": {"samples": torch.zeros(1, 4, 1, 8)},
    "a conditioning of 7": [[torch.zeros(1, 3, 7), {}]],
    "one refined to 7": [
        [torch.zeros(1, 3, 7), {"pooled_output": torch.zeros(1, 7), "ovis_u1_refined": True}],
    ],
}


class OtherValue:
    """A value by its name."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "give"
    CATEGORY = "other"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """ComfyUI's older schema."""
        return {"required": {"name": (list(VALUES),)}}

    def give(self, name: str) -> tuple[Any]:
        """The value."""
        return (VALUES[name],)


NODE_CLASS_MAPPINGS = {"OtherValue": OtherValue}
