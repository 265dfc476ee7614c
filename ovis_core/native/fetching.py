"""A download in a process of its own, with ComfyUI's progress bar and interrupt."""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

import comfy.utils
from comfy.model_management import throw_exception_if_processing_interrupted

from .. import download
from ..download import REPOSITORY, DownloadError
from .folders import roots
from .progress import show_text

NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
PAGE = re.compile(r"^(https?://)?[^/]*(huggingface\.co|hf-mirror\.com|hf\.co)/", re.ASCII)  # what a browser shows
PATIENCE = 0.2  # seconds from one look for an interrupt to the next
# As `python FILE ARGUMENTS`, but for its folder on sys.path, where names of ours would hide others'.
RUN = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
BAR = 1000  # steps of the progress bar


def fetch(repository: str, revision: str = "main") -> Path:
    """Fetches a release into models/ovis_u1/NAME and answers the folder. Raises `DownloadError`."""
    repository = PAGE.sub("", repository.strip()).strip("/")
    if not NAME.fullmatch(repository):
        raise DownloadError(f"repository: {repository!r} is no name of a repository; it looks like owner/name.")
    owner, name = repository.split("/")
    folder = roots()[0] / (name if owner == REPOSITORY.split("/")[0] else f"{owner}--{name}")
    command = [sys.executable, "-c", RUN, download.__file__, f"--revision={revision}", "--", repository, str(folder)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, encoding="utf-8"
        ) as process,
    ):
        try:
            return _follow(process, said)
        finally:
            process.kill()


def _follow(process: subprocess.Popen[str], errors: IO[str]) -> Path:
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
            code = process.wait()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no word of why"])[-1]
            raise DownloadError(f"the download stopped with exit code {code} ({last}); run it again, it goes on.")
        said = json.loads(line)
        if "error" in said:
            raise DownloadError(said["error"])
        if "folder" in said:
            return Path(said["folder"])
        bar.update_absolute(round(BAR * said["done"] / max(said["total"], 1)), BAR)
        show_text(f"{said['done'] / 1e9:.2f} of {said['total'] / 1e9:.2f} GB, {said['doing']}")
