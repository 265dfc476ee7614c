"""A mirror of the Hugging Face hub on this machine that serves a folder; it can be slow, cut connections and change
bytes.

With `xet` it also serves its large files like the hub's Xet storage.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "c" * 40
CHUNK = 1 << 16  # bytes of a chunk of Xet
CHUNKS = 64  # of a piece of a file that Xet sends at once


@dataclass
class Mirror:
    """The mirror's behaviour, and the requests that it received."""

    folder: Path
    url: str = ""
    cut_after: int | None = None  # bytes of a file, after which no more are sent
    cut_every: int | None = None  # bytes after which each connection ends
    no_ranges: bool = False  # ignore ranges and send the whole file
    damage: bool = False
    pause: float = 0.0  # seconds after each 64 KiB
    xet: bool = False
    xet_tokens: str = ""  # address of another mirror that gives out tokens
    storage_fails_after: int = -1  # pieces that Xet sends; -1: it does not fail
    storage_pause: float = 0.0  # seconds before each of them
    token: str = ""  # the token that a reader must send
    moved: str = ""  # another mirror, to which files are redirected
    refused: int = 0  # the status of every request for a file, in place of the file
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range
    tokens: list[tuple[str, str | None]] = field(default_factory=list)  # path, token that was sent


class Handler(BaseHTTPRequestHandler):
    """Answers like the hub and like its Xet storage."""

    protocol_version = "HTTP/1.1"

    @property
    def mirror(self) -> Mirror:
        return self.server.mirror

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.mirror.asked.append((self.command, self.path, self.headers.get("Range")))
        self.mirror.tokens.append((self.path, self.headers.get("Authorization")))
        path = self.path.split("?")[0]
        shown = self.headers.get("Authorization")
        if (
            self.mirror.token
            and not path.startswith(("/v1/", "/v2/", "/xorbs/"))
            and shown != f"Bearer {self.mirror.token}"
        ):
            self._refuse(401, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/owner/renamed/"):
            self._refuse(307, {"Location": self.path.replace("renamed", "small")})
        elif path.startswith("/api/models/owner/small/xet-read-token/"):
            answer = {"accessToken": "read", "exp": int(time.time()) + 3600, "casUrl": self.mirror.url}
            self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/small/tree/"):
            self._send(json.dumps(tree(self.mirror.folder)).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/small"):
            self._send(json.dumps(describe(self.mirror.folder)).encode(), {"Content-Type": "application/json"})
        elif path.startswith("/owner/renamed/resolve/"):
            self._refuse(307, {"Location": self.path.replace("renamed", "small")})
        elif path.startswith("/owner/small/resolve/"):
            self._resolve(self.mirror.folder / path.rsplit("/", 1)[1])
        elif self.mirror.xet and path.startswith("/v1/reconstructions/"):
            self._reconstruct(path.rsplit("/", 1)[1])
        elif self.mirror.xet and path.startswith("/xorbs/") and self.mirror.storage_fails_after == 0:
            self._refuse(404, {})
        elif self.mirror.xet and path.startswith("/xorbs/"):
            self.mirror.storage_fails_after -= 1
            time.sleep(self.mirror.storage_pause)
            self._send(serialized(find(self.mirror.folder, path.rsplit("/", 1)[1], self.mirror.damage)), {})
        else:
            self._refuse(404, {"X-Error-Code": "RepoNotFound"})

    def _resolve(self, file: Path) -> None:
        if self.mirror.refused:
            self._refuse(self.mirror.refused, {})
            return
        large = file.suffix == ".safetensors"
        etag = hashlib.sha256(file.read_bytes()).hexdigest() if large else blob(file.read_bytes())
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.mirror.xet and large:
            token_url = f"{self.mirror.xet_tokens or self.mirror.url}/api/models/owner/small/xet-read-token/{COMMIT}"
            headers |= {"X-Xet-Hash": etag, "Link": f'<{token_url}>; rel="xet-auth"'}
        if self.mirror.moved and large:
            self._refuse(302, {**headers, "Location": f"{self.mirror.moved}{self.path}"})
            return
        self._send(content(file, self.mirror.damage), headers)

    def _reconstruct(self, name: str) -> None:
        """The chunks of a file, or of a range of it."""
        size = len(find(self.mirror.folder, name, False))
        start, end = self._range(size)
        first, last = start // CHUNK, -(-end // CHUNK)
        terms, places = [], []
        for begin in range(first, last, CHUNKS):
            chunks = {"start": begin, "end": min(begin + CHUNKS, last)}
            held = min(chunks["end"] * CHUNK, size) - chunks["start"] * CHUNK
            stop = min(chunks["end"] * (CHUNK + 8), size + 8 * -(-size // CHUNK)) - 1
            terms.append({"hash": name, "unpacked_length": held, "range": chunks})
            places.append(
                {
                    "range": chunks,
                    "url": f"{self.mirror.url}/xorbs/{name}",
                    "url_range": {"start": begin * (CHUNK + 8), "end": stop},
                }
            )
        answer = {"offset_into_first_range": start - first * CHUNK, "terms": terms, "fetch_info": {name: places}}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, code: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _range(self, whole: int) -> tuple[int, int]:
        wanted = self.headers.get("Range")
        start, _, end = wanted.split("=")[1].partition("-") if wanted else ("0", "", "")
        return int(start), min(int(end) + 1, whole) if end else whole

    def _send(self, data: bytes, headers: dict[str, str]) -> None:
        wanted, whole = self.headers.get("Range"), len(data)
        wanted = None if self.mirror.no_ranges else wanted
        start, end = self._range(whole) if wanted else (0, whole)
        data = data[start:end]
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{whole}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for i in range(0, len(data), 1 << 16):
            cut = self.mirror.cut_after is not None and start + i >= self.mirror.cut_after
            if cut or (self.mirror.cut_every is not None and i >= self.mirror.cut_every):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(data[i : i + (1 << 16)])
            time.sleep(self.mirror.pause)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, mirror: Mirror) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mirror = mirror

    def handle_error(self, *_: Any) -> None:
        """Ignores readers that disconnect, as some tests do."""


@contextmanager
def serve(folder: Path) -> Iterator[Mirror]:
    """`folder`'s files as the repository owner/small."""
    mirror = Mirror(folder)

    server = Server(mirror)
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield mirror
    finally:
        server.shutdown()


def content(file: Path, damage: bool) -> bytes:
    """A file's bytes; with `damage` the last byte of weights is changed."""
    data = file.read_bytes()
    return data[:-1] + bytes([data[-1] ^ 1]) if damage and file.suffix == ".safetensors" else data


def find(folder: Path, digest: str, damage: bool) -> bytes:
    """The bytes of the file with that SHA-256, which this mirror also uses as its name in Xet."""
    file = next(file for file in folder.iterdir() if hashlib.sha256(file.read_bytes()).hexdigest() == digest)
    return content(file, damage)


def serialized(data: bytes) -> bytes:
    """A file's bytes in Xet's format: uncompressed chunks, each after its header."""
    chunks = (data[i : i + CHUNK] for i in range(0, len(data), CHUNK))
    return b"".join(
        b"\0" + len(chunk).to_bytes(3, "little") + b"\0" + len(chunk).to_bytes(3, "little") + chunk for chunk in chunks
    )


def blob(data: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(folder: Path) -> dict[str, Any]:
    """The hub's description of a repository."""
    siblings = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        entry: dict[str, Any] = {"rfilename": file.name, "size": len(data), "blobId": blob(data)}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        siblings.append(entry)
    return {"_id": "0", "id": "owner/small", "modelId": "owner/small", "sha": COMMIT, "siblings": siblings}


def tree(folder: Path) -> list[dict[str, Any]]:
    """The same as a list of files, which newer clients ask for."""
    entries = []
    for sibling in describe(folder)["siblings"]:
        entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
        if "lfs" in sibling:
            entry["lfs"] = {"oid": sibling["lfs"]["sha256"], "size": sibling["size"], "pointerSize": 130}
        entries.append(entry)
    return entries
