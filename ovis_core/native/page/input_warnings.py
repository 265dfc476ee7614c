"""Warnings, in the log and on the node, about inputs that run but that probably do not give what the user wants."""

from __future__ import annotations

import logging

from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...sizes import understanding_size
from .page_messages import made_by_another, page_of_prompt, show_text

_run: object = None  # the prompt and the node of the warnings in `_shown`
_shown: dict[int | None, list[str]] = {}  # warnings of this run, by the index in its list, if the node runs over one
_warned: set[tuple[str, str]] = set()  # pages and nodes whose warning the node's next run may have to clear


def warn_of_size(side: int | None, height: int, width: int) -> None:
    """Warns if a model that was trained on images of side x side will make one of height x width pixels."""
    _warn_if(
        side is not None and (height, width) != (side, side),
        f"Set width and height to {side}, or scale the source image of an edit: this model was trained on images of "
        f"{side} x {side} pixels.",
    )


def warn_of_image_size(side: int | None, height: int, width: int) -> None:
    """Warns if a question is about an image whose size is not that of the training images."""
    _warn_if(
        side is not None and understanding_size(height, width) != understanding_size(side, side),
        f"This model was trained on images of {side} x {side} pixels, and its answer about an image of "
        f"{width} x {height} will probably be wrong; scale the image to {side} x {side}, or load another model.",
    )


def warn_of_empty_prompt(prompt: str, remedy: str) -> None:
    """Warns if a prompt has no text. remedy: what to write."""
    _warn_if(not prompt.strip(), f"The prompt is empty; {remedy}.")


def warn_of_empty_mask(mask: Tensor | None) -> None:
    """Warns if the mask of a latent selects nothing."""
    _warn_if(
        mask is not None and not mask.any(),
        "The mask is empty, so nothing changes; paint a mask, or remove the node that sets it.",
    )


def warnings() -> list[str]:
    """The warnings of this run of the running node, in order. Its result would replace them, so it shows them again."""
    global _run
    node = get_executing_context()
    run = None if node is None else (node.prompt_id, node.node_id)
    if run is None or run != _run:
        _run = run
        _shown.clear()
        page = None if node is None or made_by_another() else page_of_prompt()
        if page is not None and (page, node.node_id) in _warned:
            _warned.remove((page, node.node_id))
            show_text(" ")  # the page ignores an empty text
    return _shown.setdefault(None if node is None else node.list_index, [])


def _warn_if(wrong: bool, text: str) -> None:
    own = warnings()
    if not wrong or text in own:
        return
    # Once for each run of a node, which may bring several conditions or images.
    repeated = any(text in texts for texts in _shown.values())
    own.append(text)
    if repeated:
        return
    logging.warning("Ovis-U1: %s", text)
    show_text("\n\n".join(own))
    node, page = get_executing_context(), page_of_prompt()
    if node is not None and page is not None and not made_by_another():
        _warned.add((page, node.node_id))
