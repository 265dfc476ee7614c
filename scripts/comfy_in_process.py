"""A ComfyUI in this process, without an open port: prompts go directly into its queue. For evaluation/."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comfy_prompt import PromptFailed, PromptRejected

POLL = 0.002  # seconds between checks of ComfyUI's history


class ComfyInProcess:
    """ComfyUI, started by its own main.py with all nodes; only one per process.

    comfyui  folder of ComfyUI; nothing is written to it
    base     ComfyUI's base directory, see `workspace.make_base`
    options  ComfyUI's, such as --cpu
    """

    def __init__(self, comfyui: Path, base: Path, *options: str) -> None:
        os.chdir(base)  # newer versions of ComfyUI write a log there
        line = ["main.py", "--base-directory", str(base), "--temp-directory", str(base), *options]
        if "--database-url" in (comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
            line += ["--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}"]
        # ComfyUI writes to the buffers of these streams, which are closed with the last reference to them.
        self._streams = sys.stdout, sys.stderr
        # ComfyUI's folder comes first: it has modules named nodes, server and utils.
        sys.path.insert(0, str(comfyui))
        ours, sys.argv = sys.argv, line
        try:
            self._loop, self._server, _ = importlib.import_module("main").start_comfyui()
        finally:
            sys.argv = ours
        threading.Thread(target=self._loop.run_until_complete, args=(self._server.publish_loop(),), daemon=True).start()

    def run(self, prompt: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Outputs of a prompt by node, and ComfyUI's seconds. Raises PromptRejected or PromptFailed."""
        import execution

        name = uuid.uuid4().hex
        checked = execution.validate_prompt(name, prompt, None)
        valid, error, outputs, node_errors = asyncio.run_coroutine_threadsafe(checked, self._loop).result()
        if not valid:
            raise PromptRejected(error, node_errors)
        queue = self._server.prompt_queue
        queue.put((0, name, prompt, {}, outputs, {}))
        while name not in queue.history:
            time.sleep(POLL)
        entry = queue.get_history(name)[name]
        queue.delete_history_item(name)
        messages = entry["status"]["messages"]
        for kind, said in messages:
            if kind in ("execution_error", "execution_interrupted"):
                message = " ".join(str(said.get("exception_message", "it was interrupted")).split())
                raise PromptFailed(str(said.get("node_id")), str(said.get("node_type")), message)
        return entry["outputs"], (messages[-1][1]["timestamp"] - messages[0][1]["timestamp"]) / 1e3
