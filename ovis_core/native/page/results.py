"""The text that a node shows as its result."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..compat import SHOWS_TEXT_FILES
from .input_warnings import warnings
from .page_messages import made_by_another, show_result, show_text


def text_result(text: str) -> dict[str, Any] | None:
    """The `ui` of a node that shows a text and its warnings; None if another node has made it, which shows its own.

    If the page has an app mode, the text is also a file among ComfyUI's temporary files: there the page shows only
    files. The same text is the same file.
    """
    if made_by_another():
        return None
    text = _paragraphs(text, warnings())
    return _text_file(text) | ui.PreviewText(text).as_dict()


class _SharedTexts(list[str]):
    """Texts that ComfyUI's copies of a result share: newer versions copy each result."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedTexts:
        return self


class _SharedFile(ui.SavedResult):
    """Likewise, a file."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedFile:
        return self


GROWING = "ovis_u1_text"  # key of the text of `GrowingText`, which web/text.js reads: "text" must be a list of strings


class GrowingText:
    """The text of a node that is complete only when the nodes that it made have run.

    ui  what the node returns
    """

    def __init__(self, text: str) -> None:
        self.warnings = warnings()
        text = _paragraphs(text, self.warnings)
        self.ui = None if made_by_another() else _text_file(text) | {GROWING: (_SharedTexts([text]),)}

    def replace(self, text: str, complete: bool = False) -> None:
        """Called by a node that the node made."""
        text = _paragraphs(text, self.warnings)
        show_text(text)
        if self.ui is not None:
            files = _text_file(text) if complete else {}
            show_result(files | {GROWING: ([text],)})
            # ComfyUI keeps these objects for the history and for cached runs, so they are changed in place.
            self.ui[GROWING][0][:] = [text]
            for file, new in zip(self.ui.get("files", ()), files.get("files", ()), strict=False):
                file.clear()  # also of what ComfyUI may have added about the old file
                file.update(new)


def _paragraphs(text: str, more: Sequence[str]) -> str:
    return "\n\n".join([text, *more])


def _text_file(text: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if SHOWS_TEXT_FILES:
        data = text.encode("utf-8", "replace")
        file = Path(folder_paths.get_temp_directory()) / f"ovis_u1_{sha256(data).hexdigest()[:16]}.txt"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        except OSError as error:
            logging.warning(
                "Ovis-U1: the text is not shown in app mode, because %s cannot be written (%s); check the free "
                "space and the permissions of its folder.",
                file,
                error,
            )
        else:
            # Before the text: the page's list of jobs takes the first of a node's results.
            shown["files"] = [_SharedFile(file.name, "", io.FolderType.temp)]
    return shown
