"""Raises errors for patches of the MODEL that would have no effect, or a wrong one, on Ovis-U1's decoder."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..networks.patches import Patch

NAG = "nodes_nag"  # core's NAGuidance
SLOTS = {"post_input", "attn1_patch", "attn1_output_patch"}
BLOCKS = {"double_block", "single_block"}
# Keys in `transformer_options` that core's nodes for other models set -> the node's module and the part it patches.
FOREIGN_OPTIONS = {
    "stg_self_attn_blocks": ("nodes_lt", "the self-attention of LTXV's blocks"),
    "a2v_cross_attn": ("nodes_lt", "the attention between LTXV's video and audio"),
    "v2a_cross_attn": ("nodes_lt", "the attention between LTXV's video and audio"),
    "chroma_radiance_options": ("nodes_chroma_radiance", "the last layers of Chroma Radiance"),
    "animate2_cache": ("nodes_wan", "the pose branch of Wan"),
    "audio_embeds": ("nodes_wan", "the audio layers of Wan"),
}
# The module of core's FluxKVCache. It keeps keys and values of reference images from the first step on, but the
# attention over the image stream alone, which FLUX does not have, would miss them.
KEY_CACHE = "nodes_flux"


class PatchChecks:
    """The checks of a sampling run, pass by pass."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets the sampling run."""
        self._pair_seen = False  # positive and negative came in one batch
        self._alone: tuple[Tensor | None, set[int]] = (None, set())  # a condition that came alone, and its sigmas

    def __call__(self, options: dict[str, Any]) -> None:
        """Checks the `transformer_options` of a pass. Raises ValueError that names the patch or its node."""
        for slot, module in _foreign(options):
            raise ValueError(
                f"model: a node of {module} patches {slot}, which Ovis-U1 does not have; remove that node."
            )
        self._check_pair(options)

    def _check_pair(self, options: dict[str, Any]) -> None:
        """Raises ValueError if a node compares the two conditions of guidance and they do not come in one batch.

        The first step in which both are active decides: one of them may begin late or end early. Patches may add passes
        of single conditions later.
        """
        patches = options.get("patches", {}).get("attn1_output_patch", ())
        pair = {0, 1}.intersection(options.get("cond_or_uncond") or ())
        if self._pair_seen or not pair or not any(origin(patch) == NAG for patch in patches):
            return
        if len(pair) == 2:
            self._pair_seen = True
            return
        # All passes of a step are given the same tensor.
        sigmas, alone = self._alone
        if sigmas is not options.get("sigmas"):
            alone = set()
        self._alone = (options.get("sigmas"), alone | pair)
        if len(alone | pair) == 2:
            raise ValueError(
                "model: NAGuidance needs positive and negative in one batch, got them in separate batches; use "
                "reference images and hooks for both or for neither, free memory, or remove NAGuidance."
            )


def _foreign(options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The parts with patches that the decoder does not have, each with the module of the patch's node."""
    for name, (module, slot) in FOREIGN_OPTIONS.items():
        if name in options:
            yield slot, module
    patches = options.get("patches", {})
    for slot, found in patches.items():
        for patch in found:
            if slot not in SLOTS:
                yield slot, origin(patch)
    for patch in patches.get("attn1_patch", ()):
        if not _takes_flux_arguments(patch):
            yield "the attention of U-Nets", origin(patch)
        elif origin(patch) == KEY_CACHE:
            yield "the cache of FLUX's reference images", origin(patch)
    for kind, places in options.get("patches_replace", {}).items():
        for place, patch in places.items():
            if kind != "dit":
                yield f"{kind} of U-Nets", origin(patch)
            elif place[0] not in BLOCKS:
                yield f"the blocks {place[0]}", origin(patch)


def _takes_flux_arguments(patch: Patch) -> bool:
    """Whether a patch takes the arguments of FLUX's attention; U-Nets pass others."""
    try:
        inspect.signature(patch).bind(None, None, None, pe=None, attn_mask=None, extra_options=None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def origin(patch: Patch) -> str:
    """The module that defines a patch, so that users can find the node."""
    module = getattr(patch, "__module__", None) or type(patch).__module__
    # ComfyUI names the modules of nodes by their paths.
    return module.replace("\\", "/").rpartition("/")[2].removeprefix("comfy_extras.")
