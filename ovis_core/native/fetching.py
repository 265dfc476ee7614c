"""A download in a process of its own, with ComfyUI's progress bar and interrupt."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import threading
from pathlib import Path

import comfy.utils
from comfy.model_management import throw_exception_if_processing_interrupted

from .. import download
from ..download import DownloadError
from .folders import roots
from .progress import show_text

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
PATIENCE = 0.2  # seconds from one look for an interrupt to the next
# As `python FILE ARGUMENTS`, but for its folder on sys.path, where names of ours would hide others'.
RUN = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
BAR = 1000  # steps of the progress bar


def fetch(repository: str, revision: str = "main") -> Path:
    """Fetches a release into models/ovis_u1/NAME and answers the folder. Raises `DownloadError`."""
    if not NAME.fullmatch(repository) or repository.endswith(("/.", "/..")):
        raise DownloadError(f"repository: {repository!r} is no name of a repository; it looks like owner/name.")
    folder = roots()[0] / repository.split("/")[1]
    command = [sys.executable, "-c", RUN, download.__file__, f"--revision={revision}", "--", repository, str(folder)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    )
    try:
        return _follow(process)
    finally:
        process.kill()
        process.wait()


def _follow(process: subprocess.Popen[str]) -> Path:
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    bar = comfy.utils.ProgressBar(BAR)
    while True:
        throw_exception_if_processing_interrupted()
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            continue
        if not line:
            raise DownloadError(f"the download stopped with exit code {process.wait()}; run it again, it goes on.")
        said = json.loads(line)
        if "error" in said:
            raise DownloadError(said["error"])
        if "folder" in said:
            return Path(said["folder"])
        bar.update_absolute(round(BAR * said["done"] / max(said["total"], 1)), BAR)
        show_text(f"{said['done'] / 1e9:.2f} of {said['total'] / 1e9:.2f} GB, {said['doing']}")
