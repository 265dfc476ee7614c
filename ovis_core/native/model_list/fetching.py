"""A download in a thread, with ComfyUI's progress bar and interrupt."""

from __future__ import annotations

import threading
from pathlib import Path

import comfy.utils
from comfy.model_management import throw_exception_if_processing_interrupted

from ...weights.download import REPOSITORY, Progress, download, repository_name
from ..page.page_messages import show_text
from .folders import roots
from .model_search import find_models

PATIENCE = 0.1  # seconds between checks for an interrupt
BAR = 1000  # steps of the progress bar

_running: dict[Path, _Download] = {}


class _Download(threading.Thread):
    """One download; `error` is the exception that ended it."""

    def __init__(self, repository: str, folder: Path, revision: str) -> None:
        super().__init__(name=f"download of {repository}", daemon=True)
        self.stop = threading.Event()
        self.progress: Progress | None = None
        self.error: BaseException | None = None
        self._arguments = repository, folder, revision
        self._nearby = [path for path in find_models().values() if path.is_dir() and path != folder]

    def run(self) -> None:
        try:
            download(*self._arguments, report=self._report, stop=self.stop, nearby=self._nearby)
        except BaseException as error:  # raised again in the waiting thread
            self.error = error

    def _report(self, progress: Progress) -> None:
        self.progress = progress


def fetch(repository: str, revision: str = "main") -> Path:
    """Downloads a release into models/ovis_u1/NAME and returns the folder. Raises `DownloadError`."""
    repository = repository_name(repository)
    owner, name = repository.split("/")
    folder = roots()[0] / (name if owner == REPOSITORY.split("/")[0] else f"{owner}--{name}")
    _wait_for(_running.pop(folder, None))
    task = _running[folder] = _Download(repository, folder, revision)
    task.start()
    try:
        _follow(task)
    finally:
        task.stop.set()
    if task.error is not None:
        raise task.error
    return folder


def _wait_for(task: _Download | None) -> None:
    """An interrupted download ends after its current block."""
    while task is not None and task.stop.is_set() and task.is_alive():
        throw_exception_if_processing_interrupted()
        task.join(PATIENCE)


def _follow(task: _Download) -> None:
    bar = comfy.utils.ProgressBar(BAR)
    shown = None
    while task.is_alive():
        throw_exception_if_processing_interrupted()
        task.join(PATIENCE)
        progress = task.progress
        if progress is not None and progress is not shown:
            shown = progress
            bar.update_absolute(round(BAR * progress.done / max(progress.total, 1)), BAR)
            show_text(f"{progress.done / 1e9:.2f} of {progress.total / 1e9:.2f} GB, {progress.doing}")
