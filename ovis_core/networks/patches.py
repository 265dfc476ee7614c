"""The places where patches act on the decoder, in ComfyUI's form for FLUX: its input, its blocks and their attention.

They are entries of `transformer_options`: `rope_options`; `post_input`, `attn1_patch` and `attn1_output_patch` under
"patches"; replacements of blocks under "patches_replace"; `optimized_attention_override`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention

Patch = Callable[..., Any]
Args = dict[str, Any]


def may_keep_tensors(options: dict[str, Any]) -> bool:
    """Whether patches may keep q, k, v or a block's input, which must then not be overwritten."""
    return any(options.get(name) for name in ("patches", "patches_replace", "optimized_attention_override"))


def has_hooks(*modules: nn.Module) -> bool:
    """Whether torch hooks receive inputs or outputs of these modules."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def patched_input(
    patches: Sequence[Patch], img: Tensor, txt: Tensor, ids: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens (B, N, hidden), text tokens (B, L, hidden) and `positions` (L + N, 3) after `post_input` patches."""
    for patch in patches:
        # Core's patches take ids with a batch dimension, the text's separately.
        txt_ids, img_ids = ids[None].expand(img.shape[0], -1, -1).split((txt.shape[1], img.shape[1]), dim=1)
        args = {"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": txt_ids, "transformer_options": options}
        out = patch(args)
        img, txt, ids = out["img"], out["txt"], torch.cat((out["txt_ids"][0], out["img_ids"][0]))
    return img, txt, ids


def scaled_positions(ids: Tensor, image: slice, scaling: dict[str, float]) -> Tensor:
    """`positions` (L + N, 3) with those of the image scaled and shifted, for ComfyUI's ScaleROPE."""
    scale = [1.0, scaling.get("scale_y", 1.0), scaling.get("scale_x", 1.0)]
    shift = [scaling.get(f"shift_{axis}", 0.0) for axis in "tyx"]
    scaled = ids[image] * ids.new_tensor(scale) + ids.new_tensor(shift)
    return torch.cat((ids[: image.start], scaled, ids[image.stop :]))


def run_double(
    block: nn.Module,
    replacement: Patch | None,
    img: Tensor,
    txt: Tensor,
    vec: Tensor,
    pe: Tensor,
    options: dict[str, Any],
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Image and text tokens after a double block or its replacement; `mask` of the joint attention."""
    if replacement is None:
        return block(img, txt, vec, pe, options, mask)

    def original(args: Args) -> Args:
        own = args.get("transformer_options", options)
        img, txt = block(args["img"], args["txt"], args["vec"], args["pe"], own, args.get("attn_mask", mask))
        return {"img": img, "txt": txt}

    args = {"img": img, "txt": txt, "vec": vec, "pe": pe, "attn_mask": mask, "transformer_options": options}
    out = replacement(args, {"original_block": original})
    return out["img"], out["txt"]


def run_single(
    block: nn.Module,
    replacement: Patch | None,
    x: Tensor,
    vec: Tensor,
    pe: Tensor,
    options: dict[str, Any],
    mask: Tensor | None = None,
) -> Tensor:
    """Text and image tokens, joined, after a single block or its replacement; `mask` of the attention."""
    if replacement is None:
        return block(x, vec, pe, options, mask)

    def original(args: Args) -> Args:
        own = args.get("transformer_options", options)
        return {"img": block(args["img"], args["vec"], args["pe"], own, args.get("attn_mask", mask))}

    args = {"img": x, "vec": vec, "pe": pe, "attn_mask": mask, "transformer_options": options}
    return replacement(args, {"original_block": original})["img"]


def patched_attention(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pe: Tensor,
    options: dict[str, Any],
    mask: Tensor | None = None,
) -> Tensor:
    """Joint attention, q, k, v (B, heads, L + N, D) -> (B, L + N, hidden), between its two kinds of patches."""
    patches = options.get("patches", {})
    for patch in patches.get("attn1_patch", ()):
        out = patch(q, k, v, pe=pe, attn_mask=mask, extra_options=options)
        q, k, v = out.get("q", q), out.get("k", k), out.get("v", v)
        pe, mask = out.get("pe", pe), out.get("attn_mask", mask)
    x = attention(q, k, v, pe, mask=mask, transformer_options=options)
    for patch in patches.get("attn1_output_patch", ()):
        x = patch(x, options)
    return x
