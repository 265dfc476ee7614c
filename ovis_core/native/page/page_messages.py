"""Messages to the page about the running node: text, and a new result."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context


def show_text(text: str) -> None:
    """Shows text on the running node, on the page that queued it. Without a server or such a page it does nothing.

    A node that another one has made is not on the page; its text is shown on the one that made it.
    """
    node = get_executing_context()
    server = None if node is None else _server_with_page()
    if server is not None:
        server.send_progress_text(text, shown_on(node.node_id), server.client_id)


def show_result(shown: Mapping[str, Any]) -> None:
    """Sends the page a new result (`ui`) of the node that made the running one, which keeps it. Else as `show_text`."""
    node = get_executing_context()
    server = None if node is None else _server_with_page()
    if server is not None:
        maker = shown_on(node.node_id)
        message = {"node": maker, "display_node": maker, "output": shown, "prompt_id": node.prompt_id}
        server.send_sync("executed", message, server.client_id)


def made_by_another() -> bool:
    """Whether another node has made the running one, which is then not on the page."""
    node = get_executing_context()
    return node is not None and shown_on(node.node_id) != node.node_id


def shown_on(node_id: str) -> str:
    """The node of the page that shows what this one sends."""
    return get_progress_state().dynprompt.get_display_node_id(node_id)


def page_of_prompt() -> str | None:
    """The id of the page that queued what runs; None without one."""
    server = _server_with_page()
    return None if server is None else server.client_id


def _server_with_page() -> Any:
    """ComfyUI's server if a page has queued what runs; None otherwise, because its messages would go to every page."""
    module = sys.modules.get("server")  # it is not imported, or has made no server, if only the core runs
    server = None if module is None else vars(module.PromptServer).get("instance")
    return None if server is None or server.client_id is None else server
