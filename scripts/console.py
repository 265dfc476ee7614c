"""Console output of the scripts: progress on one line, and each error as one sentence."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import traceback
from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from types import TracebackType

BAR_WIDTH = 30  # characters of a progress bar


class UserError(Exception):
    """An error that is shown to the user as one sentence."""


class Ticker:
    """One line on the console that counts the seconds of a step: `with Ticker("starting ComfyUI"): ...`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.seconds = 0.0
        self._live = sys.stdout.isatty()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._begun = 0.0

    def __enter__(self) -> Ticker:
        self._begun = time.monotonic()
        if self._live:
            self._thread.start()
        else:
            print(f"{self.label} ...", flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._begun
        self._stop.set()
        if self._live:
            self._thread.join()
        how = "done" if kind is None else "stopped" if kind is KeyboardInterrupt else "failed"
        show(f"{self.label}: {how}, {self.seconds:.1f} s", last=True)

    def _tick(self) -> None:
        while not self._stop.is_set():
            show(f"{self.label} ... {time.monotonic() - self._begun:.0f} s")
            self._stop.wait(1.0)


def show(text: str, last: bool = False) -> None:
    """Rewrites the console's current line. If the output is not a console, only the last state of a line is written."""
    if not sys.stdout.isatty():
        if last:
            print(text, flush=True)
        return
    width = shutil.get_terminal_size().columns - 1
    # The last state may wrap. Others must not, because "\r" would not return to the beginning of the text.
    shown = text if last else text[:width]
    print("\r" + shown.ljust(width), end="\n" if last else "", flush=True)


def bar(value: float, maximum: float) -> str:
    """A progress bar of plain characters."""
    share = min(max(value / maximum, 0.0), 1.0) if maximum > 0 else 0.0
    full = round(share * BAR_WIDTH)
    return f"[{'#' * full}{'-' * (BAR_WIDTH - full)}] {share:4.0%}"


def guarded(main: Callable[[], int]) -> int:
    """Runs a script's `main`; an error is printed as one sentence, unless OVIS_U1_DEBUG is set."""
    try:
        return main()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except UserError as error:
        _trace_if_asked()
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        _trace_if_asked()
        print(lacks(error), file=sys.stderr)
    except Exception as error:
        _trace_if_asked()
        text = " ".join(str(error).split()) or "no message"
        hint = "set OVIS_U1_DEBUG=1 to print the traceback"
        print(f"error: unexpected {type(error).__name__}: {text}; {hint}.", file=sys.stderr)
    return 1


def lacks(error: ModuleNotFoundError) -> str:
    """An error message for a package that this Python does not have."""
    return f"error: {sys.executable} does not have the package {error.name}; run this with the Python of your ComfyUI."


def positive_int(text: str) -> int:
    """A whole number of at least 1 from the command line, as the `type` of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}; use 1 or more")
    return int(text)


def chosen_names(option: str, text: str | None, names: Collection[str]) -> Collection[str]:
    """The names that an option lists with commas; without it all. Raises UserError if one is not in `names`."""
    chosen = names if text is None else text.split(",")
    for name in chosen:
        if name not in names:
            raise UserError(
                f"{option}: expected one or more of {', '.join(names)}, got {name!r}; separate them with commas."
            )
    return chosen


def _trace_if_asked() -> None:
    if os.environ.get("OVIS_U1_DEBUG"):
        traceback.print_exc()
