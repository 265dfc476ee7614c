"""Why a name is not a model: an error message for the loader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ...weights.hub_cache import cached_repositories, snapshots
from ...weights.release_folder import is_complete
from .folders import elsewhere, roots
from .model_search import HUB, Listing, current_listing, find_model, is_model_file, why_not_listed


def why_missing(name: str) -> str:
    """An error message if no model has this name; empty if one has it."""
    if find_model(name) is not None:
        return ""
    listing = current_listing()
    refused = list(listing.refused())
    for place in _places(name):
        if os.path.lexists(place):
            return f"model_name: {name!r} cannot be used: {_why_not_this(place, listing, refused)}"
    if _is_inside(name):
        parts = Path(name).parts
        reason = next((reason for path, reason in refused if path.parts[-len(parts) :] == parts), "")
        if reason:
            return f"model_name: {name!r} cannot be used: {reason}"
    names = list(listing.found)
    if names:
        choice = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
        return f"model_name: {name!r} was not found; choose {choice}, or add the model and press R to refresh."
    if refused:
        return f"model_name: no Ovis-U1 model was found: {refused[0][1]}"
    return (
        "model_name: no Ovis-U1 model was found; run Ovis-U1 Download, or put the folder of AIDC-AI/Ovis-U1-3B into "
        f"{roots()[0]}, and press R to refresh."
    )


def _why_not_this(place: Path, listing: Listing, refused: list[tuple[Path, str]]) -> str:
    """An error message for a name whose file or folder exists and cannot be used."""
    for path, reason in refused:
        if place in (path, *path.parents):
            return reason
    listed = next((name for name, path in listing.found.items() if place in (path, *path.parents)), "")
    if listed:
        return f"the model in {place} has the name {listed!r} in the list; choose that name."
    reason = why_not_listed(place)
    if reason:
        return reason
    if is_complete(place) or is_model_file(place):
        return f"{place} is a complete model, but its folder is not searched; move it into {roots()[0]}."
    return f"{place} does not contain a model; put the files of AIDC-AI/Ovis-U1-3B into it."


def _places(name: str) -> Iterator[Path]:
    """The paths where a model of that name would be."""
    if not _is_inside(name):
        return
    yield from (root / name for root in roots())
    label, _, rest = name.partition("/")
    yield from (root / rest for root, its_label in elsewhere().items() if its_label == label)
    if label == HUB and rest in (cached := cached_repositories()):
        yield from snapshots(cached[rest])


def _is_inside(name: object) -> bool:
    """Whether a name stays inside its folder."""
    return isinstance(name, str) and bool(Path(name).parts) and not Path(name).anchor and ".." not in Path(name).parts
