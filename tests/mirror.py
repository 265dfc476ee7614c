"""A mirror of the Hugging Face hub on this machine, over a folder; it can be slow, cut lines and change bytes."""

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


@dataclass
class Mirror:
    """What it does, and what was asked of it."""

    folder: Path
    url: str = ""
    cut_after: int | None = None  # bytes of a file, beyond which nothing comes
    damage: bool = False
    pause: float = 0.0  # seconds after each 64 KiB
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range


@contextmanager
def serve(folder: Path) -> Iterator[Mirror]:
    """`folder`'s files as the repository owner/small."""
    mirror = Mirror(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            mirror.asked.append((self.command, self.path, self.headers.get("Range")))
            path = self.path.split("?")[0]
            if path.startswith("/api/models/owner/small"):
                self._send(json.dumps(describe(mirror.folder)).encode(), {"Content-Type": "application/json"})
            elif path.startswith("/owner/small/resolve/"):
                file = mirror.folder / path.rsplit("/", 1)[1]
                data = file.read_bytes()
                if mirror.damage and file.suffix == ".safetensors":
                    data = data[:-1] + bytes([data[-1] ^ 1])
                etag = hashlib.sha256(file.read_bytes()).hexdigest()
                self._send(data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send(self, data: bytes, headers: dict[str, str]) -> None:
            wanted, whole = self.headers.get("Range"), len(data)
            start = int(wanted.split("=")[1].split("-")[0]) if wanted else 0
            data = data[start:]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            for i in range(0, len(data), 1 << 16):
                if mirror.cut_after is not None and start + i >= mirror.cut_after:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.wfile.write(data[i : i + (1 << 16)])
                time.sleep(mirror.pause)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    mirror.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield mirror
    finally:
        server.shutdown()


def blob(data: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def describe(folder: Path) -> dict[str, Any]:
    """What the hub says of a repository."""
    siblings = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        entry: dict[str, Any] = {"rfilename": file.name, "size": len(data), "blobId": blob(data)}
        if file.suffix == ".safetensors":
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        siblings.append(entry)
    return {"_id": "0", "id": "owner/small", "modelId": "owner/small", "sha": COMMIT, "siblings": siblings}
