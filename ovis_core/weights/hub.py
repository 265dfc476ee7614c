"""The Hugging Face hub, or a mirror of it, over HTTP; large files over Xet if its client is installed.

Settings are those of the hub's own client: HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, HF_HUB_OFFLINE,
HF_HUB_DOWNLOAD_TIMEOUT, HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from .hub_cache import hub_home

HUB = "https://huggingface.co"
YES = {"1", "ON", "YES", "TRUE"}
TIMEOUT = 10.0  # seconds without data
XET_TIMEOUT = 60.0  # the same over Xet, which sends large pieces and tries again by itself
BLOCK = 1 << 18  # bytes per read
LINK = re.compile(r'<([^>]+)>\s*;\s*rel="?([\w-]+)"?')
MAX_REDIRECTS = 5


class Offline(OSError):
    """HF_HUB_OFFLINE is set."""


class UnusableAnswer(OSError):
    """The server's answer is not that of a hub."""


@dataclass(frozen=True)
class RepositoryFile:
    """A file of a repository.

    digest  SHA-256 of a large file (LFS), otherwise the SHA-1 of its git blob
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class XetFile:
    """A file in Xet: the hash that names its content, and the address of a token for reading it."""

    content: str
    token_url: str


def endpoint() -> str:
    """The address of the hub or of its mirror, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or HUB).strip().rstrip("/")


def model_info(repository: str, revision: str) -> dict[str, Any]:
    """Metadata of a repository: `sha`, and `siblings` with names, sizes and hashes.

    Raises OSError; for an error status its subclass urllib.error.HTTPError.
    """
    url = f"{endpoint()}/api/models/{repository}/revision/{quote(revision, safe='')}?blobs=true"
    with _open(url, {}) as answer:
        found = json.load(answer)
    if not isinstance(found, dict):
        raise UnusableAnswer("it is not a JSON object")
    return found


def file_url(repository: str, revision: str, name: str) -> str:
    """The address of a file."""
    return f"{endpoint()}/{repository}/resolve/{quote(revision, safe='')}/{quote(name)}"


def read(url: str, start: int) -> Iterator[tuple[int, bytes]]:
    """A file's blocks from `start` on, each with its offset; from 0 on if the server does not support ranges.

    Raises OSError and http.client.HTTPException.
    """
    with _open(url, {"Range": f"bytes={start}-"} if start else {}) as answer:
        place = start if answer.status == 206 else 0
        while block := answer.read(BLOCK):
            yield place, block
            place += len(block)


def xet_file(url: str) -> XetFile | None:
    """The file in Xet; None if the hub or the mirror does not name it. Raises OSError."""
    for _ in range(MAX_REDIRECTS):
        headers = _headers(url)
        content = headers.get("X-Xet-Hash")
        links = {name: link for link, name in LINK.findall(headers.get("Link", ""))}
        token_url = links.get("xet-auth") or headers.get("X-Xet-Refresh-Route")
        if content and token_url:
            # A mirror may pass on the hub's answer, which contains the hub's address.
            token_url = urljoin(url, token_url.replace(HUB, endpoint(), 1))
            trusted = _same_server(token_url, endpoint())  # the token is sent there
            return XetFile(content, token_url) if trusted else None
        onward = headers.get("Location")
        if not onward or not _same_server(urljoin(url, onward), url):
            return None
        url = urljoin(url, onward)  # a repository that was renamed
    return None


def xet_client() -> Any:
    """The module `hf_xet`; None if it is not installed, is turned off, or is too old to resume a file."""
    if _is_on("HF_HUB_DISABLE_XET"):
        return None
    try:
        import hf_xet
    except ImportError:
        return None
    session = getattr(hf_xet, "XetSession", None)
    return hf_xet if hasattr(session, "new_download_stream_group") else None


def read_by_xet(client: Any, file: XetFile, size: int, start: int, stop: threading.Event) -> Iterator[bytes]:
    """A file's bytes from `start` on, in order, until `stop` is set or no more data comes.

    Raises the errors of `hf_xet`.
    """
    session = client.XetSession()
    group = session.new_download_stream_group(token_refresh_url=file.token_url, token_refresh_headers=_authorization())
    # A stream that waits for its next block cannot be cancelled, but its session can.
    with _Watchdog(stop, session.sigint_abort) as watchdog:
        for block in group.download_stream(client.XetFileInfo(file.content, size), start=start):
            watchdog.reset()
            yield block


class _Watchdog:
    """A context in which `act` is called once, when `stop` is set or no data came for `XET_TIMEOUT` seconds."""

    def __init__(self, stop: threading.Event, act: Callable[[], object]) -> None:
        self._stop = stop
        self._act = act
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.reset()

    def reset(self) -> None:
        """Call this when data came."""
        self._last = time.monotonic()

    def _run(self) -> None:
        while not self._ended.is_set():
            if self._stop.wait(0.1) or time.monotonic() - self._last > XET_TIMEOUT:
                self._act()
                return

    def __enter__(self) -> _Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").upper() in YES


def _authorization() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    if not token.strip():
        file = Path(os.environ.get("HF_TOKEN_PATH") or hub_home() / "token").expanduser()
        with suppress(OSError, ValueError):
            token = file.read_text(encoding="utf-8")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


class _KeepAuthorization(urllib.request.HTTPRedirectHandler):
    """Keeps the token in a redirect to the same host only; file storage on other hosts rejects it."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and _same_server(newurl, req.full_url):
            _authorize(new)
        return new


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _same_server(a: str, b: str) -> bool:
    """Whether two addresses have the same scheme and host: a token for https must not go over http."""
    return urlsplit(a)[:2] == urlsplit(b)[:2]


def _authorize(request: urllib.request.Request) -> None:
    for name, value in _authorization().items():
        request.add_unredirected_header(name, value)


def _request(url: str, headers: Mapping[str, str], method: str) -> urllib.request.Request:
    if _is_on("HF_HUB_OFFLINE"):
        raise Offline("HF_HUB_OFFLINE is set")
    request = urllib.request.Request(url, headers={"User-Agent": "ovis-u1; comfyui", **headers}, method=method)
    _authorize(request)
    return request


def _open(url: str, headers: Mapping[str, str]) -> Any:
    return _opener(_KeepAuthorization).open(_request(url, headers, "GET"), timeout=_timeout())


def _headers(url: str) -> Message:
    """The headers of a response; redirects are not followed."""
    try:
        with _opener(_Stay).open(_request(url, {}, "HEAD"), timeout=_timeout()) as answer:
            return answer.headers
    except urllib.error.HTTPError as error:
        if error.code in (301, 302, 303, 307, 308):
            return error.headers
        raise


def _opener(redirects: type[urllib.request.HTTPRedirectHandler]) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(redirects, urllib.request.HTTPSHandler(context=_certificates()))


def _certificates() -> ssl.SSLContext:
    file = os.environ.get("SSL_CERT_FILE") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not file:
        # Some Pythons have no certificates. The package that HTTP clients use for them is usually installed.
        with suppress(ImportError):
            import certifi

            file = certifi.where()
    context = ssl.create_default_context()
    if file:
        with suppress(OSError):
            context.load_verify_locations(file)
    return context


def _timeout() -> float:
    with suppress(ValueError):
        return float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", ""))
    return TIMEOUT
