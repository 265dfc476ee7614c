"""Where ComfyUI's patches for FLUX take hold of the decoder: its input, its blocks and their attention.

They lie in `transformer_options`: `rope_options`; `post_input`, `attn1_patch` and `attn1_output_patch` under "patches";
blocks that take another's place under "patches_replace"; `optimized_attention_override`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention

Patch = Callable[..., Any]
Args = dict[str, Any]

SLOTS = {"post_input", "attn1_patch", "attn1_output_patch"}
BLOCKS = {"double_block", "single_block"}
# Core's nodes for other models by what they put into `transformer_options`: their modules, and what they patch.
FOREIGN_OPTIONS = {
    "stg_self_attn_blocks": ("nodes_lt", "the self-attention of LTXV's blocks"),
    "a2v_cross_attn": ("nodes_lt", "the attention between LTXV's video and audio"),
    "v2a_cross_attn": ("nodes_lt", "the attention between LTXV's video and audio"),
    "chroma_radiance_options": ("nodes_chroma_radiance", "the last layers of Chroma Radiance"),
    "animate2_cache": ("nodes_wan", "the pose branch of Wan"),
    "audio_embeds": ("nodes_wan", "the audio layers of Wan"),
}
# The module of core's FluxKVCache. It keeps keys and values of reference images from the first step on, but the image's
# attention to itself, which FLUX does not have, would miss them.
KEY_CACHE = "nodes_flux"


def check_patches(options: dict[str, Any]) -> None:
    """Raises ValueError for a patch of a layer that the decoder does not have, and which would have no effect."""
    for slot, module in _foreign(options):
        raise ValueError(f"model: a node of {module} patches {slot}, which Ovis-U1 does not have; remove that node.")


def _foreign(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What is patched in vain, and the module of the node."""
    for name, (module, slot) in FOREIGN_OPTIONS.items():
        if name in options:
            yield slot, module
    patches = options.get("patches", {})
    for slot, found in patches.items():
        for patch in found:
            if slot not in SLOTS:
                yield slot, origin(patch)
    for patch in patches.get("attn1_patch", ()):
        if not _is_called_as_here(patch):
            yield "the attention of U-Nets", origin(patch)
        elif origin(patch) == KEY_CACHE:
            yield "the cache of FLUX's reference images", origin(patch)
    for kind, places in options.get("patches_replace", {}).items():
        for place, patch in places.items():
            if kind != "dit":
                yield f"{kind} of U-Nets", origin(patch)
            elif place[0] not in BLOCKS:
                yield f"the blocks {place[0]}", origin(patch)


def _is_called_as_here(patch: Patch) -> bool:
    """U-Nets call theirs with other arguments."""
    try:
        inspect.signature(patch).bind(None, None, None, pe=None, attn_mask=None, extra_options=None)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True


def origin(patch: Patch) -> str:
    """The module that defines a patch, by which people find the node."""
    module = getattr(patch, "__module__", None) or type(patch).__module__
    # ComfyUI names the modules of nodes by their paths.
    return module.replace("\\", "/").rpartition("/")[2].removeprefix("comfy_extras.")


def may_keep_tensors(options: dict[str, Any]) -> bool:
    """Whether patches may hold q, k, v or a block's input, which must then not be overwritten."""
    return any(options.get(name) for name in ("patches", "patches_replace", "optimized_attention_override"))


def has_hooks(*modules: nn.Module) -> bool:
    """Whether torch hooks see the inputs or outputs of these modules."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


def patched_input(
    patches: Sequence[Patch], img: Tensor, txt: Tensor, ids: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens (B, N, hidden), text tokens (B, L, hidden) and `positions` (L + N, 3) after `post_input` patches."""
    for patch in patches:
        # Core's patches see ids with a batch dimension, the text's apart.
        txt_ids, img_ids = ids[None].expand(img.shape[0], -1, -1).split((txt.shape[1], img.shape[1]), dim=1)
        args = {"img": img, "txt": txt, "img_ids": img_ids, "txt_ids": txt_ids, "transformer_options": options}
        out = patch(args)
        img, txt, ids = out["img"], out["txt"], torch.cat((out["txt_ids"][0], out["img_ids"][0]))
    return img, txt, ids


def scaled_positions(ids: Tensor, image: slice, scaling: dict[str, float]) -> Tensor:
    """`positions` (L + N, 3) with those of the image scaled and shifted, as ComfyUI's ScaleROPE asks."""
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
    """Image and text tokens after a double block, or after what takes its place; `mask` of the joint attention."""
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
    """Text and image tokens in one after a single block, or after what takes its place; `mask` of the attention."""
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
