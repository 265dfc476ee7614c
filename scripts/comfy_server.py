"""A ComfyUI in its own process, controlled over HTTP and its WebSocket; for the demo and the tests."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from comfy_prompt import PromptRejected, Result, shown, steps
from console import UserError
from workspace import end_tree, remove, spawn, tail

Prompt = Mapping[str, Mapping[str, Any]]
OnProgress = Callable[[int, int], object]

HOST = "127.0.0.1"
USUAL_PORT = 8188  # ComfyUI's own
PORT_TAKEN = re.compile(r"already in use|errno (98|48|10048)\b|only one usage of each socket", re.IGNORECASE)
CLOSED = {
    aiohttp.WSMsgType.CLOSE,
    aiohttp.WSMsgType.CLOSING,
    aiohttp.WSMsgType.CLOSED,
    aiohttp.WSMsgType.ERROR,
}
COLOR = re.compile(r"\x1b\[[0-9;]*m")


class ServerError(UserError):
    """ComfyUI did not start, stopped, or sent an unexpected answer."""


class ComfyServer:
    """One ComfyUI process on this machine. A context manager; it also ends with this process.

    comfyui  folder of ComfyUI; nothing is written to it
    base     ComfyUI's base directory, see `workspace.make_base`
    args     further command line arguments, such as --cpu
    port     None picks a free one
    """

    def __init__(
        self,
        comfyui: Path,
        base: Path,
        args: Sequence[str] = (),
        port: int | None = None,
    ) -> None:
        self.comfyui = Path(comfyui).resolve()
        self.base = Path(base).resolve()
        self.args = list(args)
        self.port = port
        self.log = self.base / "server.log"
        # ComfyUI empties its folder for temporary files, so servers that share a base do not share this. Its name also
        # identifies this server.
        self._temp = self.base / "temp" / uuid.uuid4().hex
        self._process: subprocess.Popen[bytes] | None = None
        # Do not use the user's proxy between this process and its child.
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where the page and the API are."""
        return f"http://{HOST}:{self.port}"

    def start(self, timeout: float = 300.0) -> ComfyServer:
        """Starts ComfyUI and waits until it answers."""
        if self.alive():
            return self
        chosen = self.port
        if chosen is not None and not _is_free(chosen):
            raise ServerError(f"port {chosen} is used by another program; choose another port.")
        for attempt in range(3):
            self.port = chosen or _free_port()
            try:
                self._launch()
                self._wait_until_ready(timeout)
            except ServerError:
                self.stop()
                # Another program can take a free port before ComfyUI uses it.
                if chosen is None and attempt < 2 and PORT_TAKEN.search(self.log_text()):
                    continue
                raise
            except BaseException:
                self.stop()
                raise
            break
        return self

    def _launch(self) -> None:
        options = ["--base-directory", str(self.base), "--listen", HOST, "--port", str(self.port)]
        options += ["--temp-directory", str(self._temp), "--disable-auto-launch", "--disable-api-nodes"]
        if "--database-url" in (self.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
            # By default the database is in ComfyUI's folder, and only one process can use a file.
            options += ["--database-url", "sqlite:///:memory:"]
        command = [sys.executable, str(self.comfyui / "main.py"), *options, *self.args]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        self.base.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as sink:
            # ComfyUI writes a log to the current directory.
            self._process = spawn(command, sink, environment, cwd=self.base)
        atexit.register(self.stop)

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self._check_alive("did not start")
            with contextlib.suppress(OSError, ValueError, KeyError, ServerError):
                # Another program may have taken this port in the meantime.
                if str(self._temp) in self._json("/system_stats", timeout=10.0)["system"]["argv"]:
                    return
            time.sleep(0.2)
        raise ServerError(f"ComfyUI did not answer within {timeout:.0f} s{self._log_tail()}")

    def stop(self) -> None:
        """Ends ComfyUI and the processes that it started."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            end_tree(process)
            with contextlib.suppress(OSError):
                remove(self._temp)

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process's id, while there is one."""
        return self._process.pid if self._process else None

    def log_text(self) -> str:
        """ComfyUI's log so far, without colours."""
        try:
            return COLOR.sub("", self.log.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return ""

    def _check_alive(self, what: str) -> None:
        if not self.alive():
            code = self._process.returncode if self._process else "none"
            raise ServerError(f"ComfyUI {what} (exit code {code}){self._log_tail()}")

    def _log_tail(self) -> str:
        return f"; read its log {self.log}, which ends with:\n{COLOR.sub('', tail(self.log))}"

    def object_info(self, node_id: str | None = None) -> dict[str, Any]:
        """ComfyUI's description of all nodes by class, or of one class."""
        if node_id is None:
            return self._json("/object_info")
        found = self._json(f"/object_info/{urllib.parse.quote(node_id)}")
        if node_id not in found:
            raise ServerError(
                f"ComfyUI does not have the node {node_id}; update ComfyUI, or install the pack of this node."
            )
        return found[node_id]

    def queue(self, prompt: Prompt, client_id: str | None = None) -> str:
        """Queues a prompt in API form; returns its id."""
        return self._queue(prompt, client_id)["prompt_id"]

    def _queue(
        self, prompt: Prompt, client_id: str | None, workflow: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"prompt": prompt}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        if client_id:
            body["client_id"] = client_id
        try:
            return self._json("/prompt", body)
        except _HttpError as error:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                said = json.loads(error.body)
                raise PromptRejected(said["error"], said.get("node_errors") or {}) from None
            raise

    def delete(self, prompt_ids: Sequence[str]) -> None:
        """Removes prompts from the queue."""
        self._request("/queue", json.dumps({"delete": list(prompt_ids)}).encode(), {"Content-Type": "application/json"})

    def waiting(self) -> int:
        """The number of prompts that run or wait."""
        return self._json("/prompt")["exec_info"]["queue_remaining"]

    def free(self) -> None:
        """Frees memory like the page's "Unload Models" and "Free model and node cache"; the server does it when it is
        idle.
        """
        body = json.dumps({"unload_models": True, "free_memory": True}).encode()
        self._request("/free", body, {"Content-Type": "application/json"})

    def interrupt(self) -> None:
        """Interrupts the running prompt."""
        self._request("/interrupt", b"{}", {"Content-Type": "application/json"})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The history's entry of a prompt; empty if there is none yet."""
        return self._json(f"/history/{prompt_id}").get(prompt_id, {})

    def image(self, entry: Mapping[str, Any]) -> bytes:
        """The file of an output's entry: {"filename": ..., "subfolder": ..., "type": ...}."""
        names = ("filename", "subfolder", "type")
        query = urllib.parse.urlencode({name: entry[name] for name in names if name in entry})
        return self._request(f"/view?{query}")

    def upload(self, path: Path) -> str:
        """Uploads an image, replacing one with the same name; returns the name for LoadImage."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="image"; '
        head += f'filename="{Path(path).name}"\r\n'
        head += "Content-Type: application/octet-stream\r\n\r\n"
        body = head.encode() + Path(path).read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        form = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        said = json.loads(self._request("/upload/image", body, form))
        return f"{said['subfolder']}/{said['name']}" if said.get("subfolder") else said["name"]

    def _json(self, path: str, body: Mapping[str, Any] | None = None, timeout: float = 120.0) -> Any:
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._request(path, data, {"Content-Type": "application/json"}, timeout))

    def _request(
        self,
        path: str,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> bytes:
        request = urllib.request.Request(self.url + path, data=data, headers=dict(headers or {}))
        try:
            with self._open(request, timeout=timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise _HttpError(path, error.code, error.read().decode("utf-8", "replace")) from None
        except OSError as error:
            self._check_alive("has stopped")
            raise ServerError(f"ComfyUI does not answer at {self.url} ({error}); read its log {self.log}.") from error

    def run(
        self,
        prompt: Prompt,
        on_progress: OnProgress | None = None,
        timeout: float | None = 600.0,
        check: bool = True,
        workflow: Mapping[str, Any] | None = None,
        page: str | None = None,
    ) -> Result:
        """Runs a prompt to its end.

        on_progress  called with the value and the maximum at each step that a node reports
        timeout      seconds after which the prompt is interrupted; None: no limit
        check        raise PromptFailed or PromptInterrupted if the prompt did not finish
        workflow     the prompt in the page's form, which is stored in saved images
        page         the id of the page that runs it; None: a new page
        """
        begun = time.monotonic()
        result = asyncio.run(self._run(prompt, on_progress, timeout, workflow, page))
        entry = self.history(result.prompt_id)
        result.outputs = entry.get("outputs", {})
        result.seconds = time.monotonic() - begun
        if check:
            result.check()
        return result

    async def _run(
        self,
        prompt: Prompt,
        on_progress: OnProgress | None,
        timeout: float | None,
        workflow: Mapping[str, Any] | None,
        page: str | None,
    ) -> Result:
        deadline = None if timeout is None else time.monotonic() + timeout
        client = page or uuid.uuid4().hex
        # No limit for messages, because a preview can have any size.
        socket_options = {"params": {"clientId": client}, "max_msg_size": 0, "heartbeat": None}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.url}/ws", **socket_options) as messages,
        ):
            said = self._queue(prompt, client, workflow)
            result = Result(said["prompt_id"], node_errors=said.get("node_errors") or {})
            seen: dict[str, tuple[int, int]] = {}
            while True:
                try:
                    message = await messages.receive(timeout=1.0)
                except asyncio.TimeoutError:
                    message = None
                if message is None:
                    self._check_alive("has stopped while it ran the prompt")
                elif message.type in CLOSED:
                    if self._process is not None:
                        # The connection closes a moment before the process ends.
                        with contextlib.suppress(subprocess.TimeoutExpired):
                            self._process.wait(3.0)
                    self._check_alive("has stopped while it ran the prompt")
                    raise ServerError(f"ComfyUI at {self.url} closed the connection; read its log {self.log}.")
                elif message.type == aiohttp.WSMsgType.TEXT:
                    event = json.loads(message.data)
                    if result.take(event):
                        return result
                    if on_progress is not None:
                        for step in steps(event, result.prompt_id, seen):
                            on_progress(*step)
                elif message.type == aiohttp.WSMsgType.BINARY:
                    result.events.extend(shown(message.data))
                if deadline is not None and time.monotonic() > deadline:
                    self.interrupt()
                    raise ServerError(
                        f"the prompt did not finish within {timeout:.0f} s and was interrupted; set a longer timeout."
                    )


class _HttpError(ServerError):
    def __init__(self, path: str, code: int, body: str) -> None:
        self.body = body
        super().__init__(
            f"ComfyUI answered {path.split('?')[0]} with status {code} ({body[:500] or 'empty'}); read its log."
        )


def usual_port() -> int:
    """ComfyUI's usual port, or the next one that is free."""
    return next(port for port in range(USUAL_PORT, 65536) if _is_free(port))


def _is_free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1.0):
        return False  # some systems allow binding although a server listens on every address
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":
            # Like the server, so that a port with connections in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
