"""The text that a node shows as its result."""

from __future__ import annotations

import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from .compat import SHOWS_TEXT_FILES


def text_result(text: str) -> dict[str, Any]:
    """The `ui` of a node that shows a text.

    If the page has an app mode, the text is also a file among ComfyUI's temporary files: there the page shows only
    files. The same text is the same file.
    """
    shown: dict[str, Any] = {}
    if SHOWS_TEXT_FILES:
        data = text.encode("utf-8", "replace")
        file = Path(folder_paths.get_temp_directory()) / f"ovis_u1_{sha256(data).hexdigest()[:16]}.txt"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        except OSError as error:
            logging.warning("Ovis-U1: the text is not shown in app mode, because %s cannot be written: %s", file, error)
        else:
            # Before the text: the page's list of jobs takes the first of a node's results.
            shown["files"] = [ui.SavedResult(file.name, "", io.FolderType.temp)]
    return shown | ui.PreviewText(text).as_dict()
