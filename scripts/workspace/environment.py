"""A separate Python environment with ComfyUI's and the pack's requirements."""

from __future__ import annotations

import hashlib
import importlib.util
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from console import Ticker, UserError

from .cache import home, remove, set_up_lock
from .processes import logged

ROOT = Path(__file__).resolve().parents[2]
PYTHON_MIN = (3, 10)
PINS = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "transformers==5.17.0")
# ComfyUI 0.3.75 imports it without listing it.
UNLISTED = ("requests",)
ENV_SIZE = "about 5 GB"
ENV_BYTES = 10**10  # on the disk, including pip's temporary files
MARKER = "ovis-u1-ready.txt"


def prepare_env(comfyui: Path, tests: bool = False) -> Path:
    """The Python of an environment with the requirements of that ComfyUI and the pack; created if it is missing.

    tests: also install the pack's `test` extra.
    """
    check_python()
    requirements = comfyui / "requirements.txt"
    if not requirements.is_file():
        raise UserError(f"the ComfyUI in {comfyui} has no requirements.txt; choose a complete installation.")
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
    """Raises UserError if this Python cannot create the environment."""
    if sys.version_info < PYTHON_MIN:
        have = platform.python_version()
        raise UserError(
            f"expected Python {'.'.join(map(str, PYTHON_MIN))} or newer, got {have}; run this with a newer one."
        )
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            hint = "on Debian and Ubuntu: apt install python3-venv"
            raise UserError(f"this Python lacks the module {module}, which the environment needs; install it ({hint}).")


def env_python(env: Path) -> Path:
    """The interpreter of an environment."""
    return env / "Scripts" / "python.exe" if sys.platform == "win32" else env / "bin" / "python"


def pack_requirements(tests: bool) -> list[str]:
    """The requirements in pyproject.toml: the pack's dependencies and, for tests, its `test` extra."""
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
    """The packages of `wanted` that the environment lacks; None if the environment itself is incomplete."""
    marker = env / MARKER
    if not marker.is_file() or not env_python(env).exists():
        return None
    have = set(marker.read_text(encoding="utf-8").splitlines())
    return [line for line in wanted if line not in have]


def _build(env: Path, requirements: Path, wanted: Sequence[str], lock: int) -> None:
    free = shutil.disk_usage(home()).free
    if free < ENV_BYTES:
        found = f"expected {ENV_BYTES / 1e9:.0f} GB of free disk space, got {free / 1e9:.1f} GB"
        raise UserError(f"{home()}: {found}; free some space, or set OVIS_U1_HOME to a folder on another disk.")
    log = env.with_suffix(".log")
    with Ticker(f"installing PyTorch and ComfyUI's requirements ({ENV_SIZE}, a few minutes)"):
        remove(env)
        python = make_venv(env, log, lock)
        arguments = ["install", "-r", str(requirements), *PINS, *wanted]
        pip(python, arguments, log, "the environment could not be installed", lock)
        _write_record(env, wanted)


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
            pip(env_python(env), arguments, log, "the environment could not be extended", lock)
        except UserError:
            # pip undoes a failed installation, but not an interrupted one: then the environment is created again.
            _write_record(env, have.splitlines())
            raise
        _write_record(env, [*have.splitlines(), *missing])


def _write_record(env: Path, lines: Sequence[str]) -> None:
    # Replaced last and in one step, so that an environment with this file is complete.
    temporary = env / (MARKER + ".new")
    temporary.write_text("".join(f"{line}\n" for line in dict.fromkeys(lines)), encoding="utf-8")
    temporary.replace(env / MARKER)


def make_venv(env: Path, log: Path, lock: int) -> Path:
    """Creates an empty environment; returns its interpreter."""
    check_python()
    command = [sys.executable, "-m", "venv", str(env)]
    logged(command, log, "the environment could not be created", lock, mode="w")
    return env_python(env)


def pip(python: Path, arguments: Sequence[str], log: Path, failure: str, lock: int) -> None:
    """Runs an environment\'s pip."""
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command = [str(python), "-m", "pip", arguments[0], *options, *arguments[1:]]
    logged(command, log, failure, lock)
