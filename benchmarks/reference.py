"""The authors' own code, from a release's folder that the user names, on weights of ours.

It wants transformers 4.51 and flash-attn; where flash-attn is missing, torch's attention stands in for it. Importing
this runs the Python of that folder, which nothing else in this project does.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from understand import QUESTION, greedy, now, time_generate

PACKAGE = "ovis_u1_reference"


class Reference:
    """The authors' model as far as understanding needs it."""

    def __init__(self, folder: Path, weights: dict[str, Tensor], device: torch.device) -> None:
        if not transformers.__version__.startswith("4.51."):
            raise SystemExit(f"--reference: the authors' code wants transformers 4.51, not {transformers.__version__}.")
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
        with _flash_attn():
            module = importlib.import_module(f"{PACKAGE}.modeling_ovis_u1")
        config = module.OvisU1Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        config.name_or_path = str(folder)
        config.llm_config._attn_implementation = "sdpa"
        torch.set_default_dtype(dtype := next(iter(weights.values())).dtype)
        try:
            self.model = module.OvisU1(config)
        finally:
            torch.set_default_dtype(torch.float32)
        self.model.visual_generator = None
        missing = self.model.load_state_dict(weights, strict=False).missing_keys
        left = [name for name in missing if "lm_head" not in name]
        if left:
            raise SystemExit(f"--reference: no weights for {left[:3]}")
        self.model.llm.tie_weights()
        self.model.to(device, dtype).eval().requires_grad_(False)
        # `.to` rounded the rotary frequencies, which from_pretrained leaves alone.
        rotary = self.model.llm.model.rotary_emb
        rotary.inv_freq = rotary.original_inv_freq = rotary.rope_init_fn(rotary.config, device)[0]
        self.device, self.dtype = device, dtype

    def answer(self, images: list[Any], room: int) -> tuple[int, float, float, list[int]]:
        """As `understand.ours`."""
        start = now()
        marks = "".join(f"Image {i + 1}: <image>\n" for i in range(len(images))) if len(images) > 1 else "<image>\n"
        _, ids, pixels, grids = self.model.preprocess_inputs(marks + QUESTION, images)
        inputs = {
            "pixel_values": pixels.to(self.device, self.dtype),
            "grid_thws": grids.to(self.device),
            "attention_mask": torch.ones_like(ids)[None].to(self.device),
        }
        ids = ids[None].to(self.device)
        seen = now() - start
        embeds = self.model.merge_multimodal(
            text_input_ids=ids,
            text_attention_masks=inputs["attention_mask"],
            text_labels=None,
            pixel_values=inputs["pixel_values"],
            grid_thws=inputs["grid_thws"],
            left_padding=True,
        )[1]
        return time_generate(lambda new: self.model.generate(ids, **inputs, **greedy(new)), seen, room, embeds)


@contextmanager
def _flash_attn() -> Iterator[None]:
    """Within it flash-attn can be imported; the stand-ins go again, because other libraries would take them for it."""
    if importlib.util.find_spec("flash_attn") is not None:
        yield
        return
    _ = diffusers.AutoencoderKL, transformers.CLIPImageProcessor  # they look for flash-attn when they are loaded
    flash, layers, rotary = (types.ModuleType(f"flash_attn{name}") for name in ("", ".layers", ".layers.rotary"))
    flash.flash_attn_varlen_func = _attention
    rotary.apply_rotary_emb = _rotate
    stand_ins = {module.__name__: module for module in (flash, layers, rotary)}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, *lengths: Any) -> Tensor:
    """q, k, v (positions, heads, head) of sequences one after the other, which begin at `starts`."""
    sizes = starts.diff().tolist()
    parts = zip(*(x.transpose(0, 1).split(sizes, dim=1) for x in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*part) for part in parts], dim=1).transpose(0, 1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, positions, heads, head); cos and sin (positions, head / 2)."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
