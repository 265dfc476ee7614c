"""Child processes that end when they should, and their logs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from console import UserError

from .cache import temporary_folder

# The caller's settings that would redirect pip or Python.
DROPPED = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}
PATIENCE = 10.0  # seconds between asking a process to end and killing it
TAIL_LINES = 15


def logged(command: Sequence[str], log: Path, failure: str, lock: int, mode: str = "a") -> None:
    """Runs a command with its output in `log`; an error includes the end of the log."""
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    with temporary_folder() as temporary, log.open(mode, encoding="utf-8") as sink:
        # The system's own temporary folder is often too small for PyTorch.
        environment.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)))
        sink.write(f"$ {' '.join(command)}\n")
        sink.flush()
        # The child has the lock too, so that no other process interferes with pip if this one is killed.
        process = spawn(command, sink, environment, lock)
        try:
            code = process.wait()
        finally:
            end_tree(process)
    if code != 0:
        raise UserError(f"{failure} (exit code {code}); read the log {log}, which ends with:\n{tail(log)}")


def spawn(
    command: Sequence[str],
    sink: IO[Any],
    environment: Mapping[str, str],
    lock: int | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process in its own group, which Ctrl+C does not reach; end it with `end_tree`.

    lock  a file descriptor that the child inherits
    """
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
        options["pass_fds"] = () if lock is None else (lock,)
    return subprocess.Popen(command, env=environment, cwd=cwd, **options)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process of `spawn` and its children: asks, waits, kills."""
    if sys.platform == "win32":
        if process.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        # If it ended itself, its children may still run.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path) -> str:
    """The last lines of a log, indented and cut to a readable length."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line[:200]}" for line in text.rstrip().splitlines()[-TAIL_LINES:])


def hand_over(python: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Continues as another Python process; on systems that cannot replace a process, returns its exit code."""
    command = [str(python), *arguments]
    merged = {**os.environ, **(environment or {})}
    for name in ("PYTHONPATH", "PYTHONHOME"):
        merged.pop(name, None)
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform != "win32":
        os.execve(command[0], command, merged)
    process = subprocess.Popen(command, env=merged)
    while True:
        # Ctrl+C also reaches the child, which cleans up.
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()
