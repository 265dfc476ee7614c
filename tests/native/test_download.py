"""The download, from a mirror on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.mirror import Mirror, describe, serve
from helpers.paths import ROOT
from ovis_core.weights import hub

WEIGHTS = "model-00002-of-00002.safetensors"
NAME = "owner--small"  # the folder; the authors' own has no owner before it
WAYS = ("http", "xet")


@pytest.fixture
def mirror(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    repository = Path(shutil.copytree(release, tmp_path / "repository"))
    (repository / "modeling_ovis_u1.py").write_text("raise SystemExit")
    (repository / "pytorch_model.bin").write_bytes(b"PK")
    with serve(repository) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "5")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(proxy, raising=False)
        yield running


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, mirror: Mirror) -> str:
    """Over plain HTTP, or from the mirror's Xet storage with the hub's Xet client."""
    mirror.xet = request.param == "xet"
    return request.param


@pytest.fixture
def models(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the node puts models."""
    import folder_paths

    folder = tmp_path / "models" / "ovis_u1"
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ovis_u1", ([str(folder)], set()))
    return folder


def fetch(name: str = "owner/small") -> Path:
    from ovis_core.native.model_list.fetching import fetch

    return fetch(name)


def files_asked(mirror: Mirror) -> set[str]:
    """Names of the files whose bytes were asked for."""
    return {path.rsplit("/", 1)[1] for method, path, _ in mirror.asked if "resolve" in path and method == "GET"}


def xet_asked(mirror: Mirror) -> int:
    """Pieces of files that came from Xet."""
    return sum(path.startswith("/xorbs/") for _, path, _ in mirror.asked)


_heard: list[tuple[str, str]] = []
_listening: list[bool] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event in ("open", "subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
        _heard.append((event, str(arguments[0])))


@pytest.fixture(scope="session")
def hook() -> None:
    sys.addaudithook(_listen)  # Python cannot remove an audit hook


@pytest.fixture
def heard(hook: None) -> Iterator[list[tuple[str, str]]]:
    """The audit events of this process meanwhile: event, and the file or program."""
    _heard.clear()
    _listening[:] = [True]
    yield _heard
    _listening.clear()


def test_download_of_a_release(
    mirror: Mirror, way: str, models: Path, config: Any, heard: list[tuple[str, str]]
) -> None:
    from ovis_core.weights.checkpoint import open_model

    folder = fetch()
    assert folder == models / NAME
    assert open_model(folder).config == config
    assert all((folder / file.name).read_bytes() == file.read_bytes() for file in mirror.folder.glob("*.safetensors"))
    assert not list(folder.glob("*.py")) + list(folder.glob("*.bin")) + list(folder.glob("*.part"))
    assert (xet_asked(mirror) > 0) == (way == "xet")
    assert (WEIGHTS in files_asked(mirror)) == (way == "http")
    assert {event for event, _ in heard} == {"open"}  # and no process was started


def test_checked_files_are_not_read_again(mirror: Mirror, models: Path, heard: list[tuple[str, str]]) -> None:
    from ovis_core.weights.download import download

    folder = fetch()
    weights = {str(file) for file in folder.glob("*.safetensors")}
    mirror.asked.clear()
    heard.clear()
    assert fetch() == folder
    assert not [path for _, path, _ in mirror.asked if "resolve" in path]
    assert not weights & {path for _, path in heard}
    os.utime(folder / WEIGHTS)  # as if it had been written
    fetch()
    assert weights & {path for _, path in heard} == {str(folder / WEIGHTS)}
    heard.clear()
    fetch()
    assert not weights & {path for _, path in heard}
    download("owner/small", folder, recheck=True)  # as the script does
    assert weights <= {path for _, path in heard}


def test_broken_or_outdated_record_is_not_used(mirror: Mirror, models: Path) -> None:
    """A record that is broken, or of another revision, is not used."""
    folder = fetch()
    for text in ("{", "[]", '{"config.json": 3}', "[" * 100_000):
        (folder / ".checked").write_text(text)
        fetch()
    right = (folder / WEIGHTS).read_bytes()
    (mirror.folder / WEIGHTS).write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    fetch()
    assert (folder / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes() != right


@pytest.mark.parametrize("module", ["hf_xet", "huggingface_hub"])
def test_download_without_optional_packages(
    mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """Files come over plain HTTP then, which needs neither."""
    mirror.xet = True
    monkeypatch.setitem(sys.modules, module, None)
    assert (fetch() / WEIGHTS).is_file()
    assert (WEIGHTS in files_asked(mirror)) == (module == "hf_xet")


@pytest.mark.parametrize("reason", ["off", "old", "the mirror has none", "it fails", "nothing comes"])
def test_download_over_http_if_xet_fails(
    mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    mirror.xet = reason != "the mirror has none"
    if reason == "off":
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    elif reason == "old":
        monkeypatch.setitem(sys.modules, "hf_xet", ModuleType("hf_xet"))
    elif reason == "it fails":
        mirror.storage_fails_after = 2
    elif reason == "nothing comes":
        from ovis_core.weights import hub

        monkeypatch.setattr(hub, "XET_TIMEOUT", 1.0)
        mirror.storage_pause = 30.0
    folder = fetch()
    assert (folder / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes()
    assert WEIGHTS in files_asked(mirror)


@pytest.mark.parametrize("where", ["environment", "file"])
def test_token_is_sent_only_to_the_hub(
    mirror: Mirror, way: str, models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    """The token is sent to the hub, and not to storage on another host."""
    from ovis_core.weights.download import DownloadError

    mirror.token = "hf_secret"
    words = r"has no owner/small at main, or it needs a login; check the name and the revision, or set HF_TOKEN\."
    with pytest.raises(DownloadError, match=words):
        fetch()
    if where == "environment":
        monkeypatch.setenv("HF_TOKEN", mirror.token)
    else:
        (tmp_path / "hf").mkdir(exist_ok=True)
        (tmp_path / "hf" / "token").write_text(f"{mirror.token}\n")
    with serve(mirror.folder) as storage:
        mirror.moved = storage.url if way == "http" else ""
        assert (fetch() / WEIGHTS).is_file()
        assert {shown for _, shown in storage.tokens} <= {None}
        assert (WEIGHTS in files_asked(storage)) == (way == "http")
    stored = {shown for path, shown in mirror.tokens if path.startswith(("/v1/", "/xorbs/"))}
    assert f"Bearer {mirror.token}" not in stored


def test_token_is_not_sent_to_another_host_for_xet(
    mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    mirror.xet = True
    with serve(mirror.folder) as another:
        mirror.xet_tokens = another.url
        assert (fetch() / WEIGHTS).is_file()
        assert another.asked == []
    assert WEIGHTS in files_asked(mirror)


def test_renamed_repository(mirror: Mirror, way: str, models: Path) -> None:
    mirror.token = ""
    assert (fetch("owner/renamed") / WEIGHTS).is_file()
    assert (xet_asked(mirror) > 0) == (way == "xet")


def client(mirror: Mirror, tmp_path: Path) -> Path:
    """The snapshot of the repository in the cache of the hub's own client."""
    code = "import huggingface_hub; print(huggingface_hub.snapshot_download('owner/small'))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    snapshot = Path(ran.stdout.strip().splitlines()[-1])
    assert snapshot.parent.name == "snapshots"
    assert tmp_path / "hf" / "hub" in snapshot.parents
    return snapshot


@pytest.mark.parametrize("how", ["link", "copy", "no links in the cache", "changed"])
def test_files_in_the_hub_cache_are_used(
    mirror: Mirror, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Only damaged files are downloaded again."""
    snapshot = client(mirror, tmp_path)
    blob = (snapshot / WEIGHTS).resolve()
    if how == "copy":
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    elif how == "no links in the cache":
        for file in snapshot.iterdir():
            data = file.read_bytes()
            file.unlink()
            file.write_bytes(data)
        shutil.rmtree(snapshot.parent.parent / "blobs")
    elif how == "changed":
        data = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    mirror.asked.clear()
    folder = fetch()
    assert files_asked(mirror) == ({WEIGHTS} if how == "changed" else set())
    assert (folder / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes()
    assert not (folder / WEIGHTS).is_symlink()
    assert not list(folder.glob("*.part"))
    if how == "link":
        assert (folder / WEIGHTS).samefile(blob)
    shutil.rmtree(tmp_path / "hf")
    assert (folder / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes()


def test_files_in_another_folder_are_used(mirror: Mirror, models: Path, release: Path) -> None:
    """Where another pack put the release."""
    shutil.copytree(release, models.parent / "ovis" / "AIDC-AI" / "Ovis-U1-3B")
    folder = fetch()
    assert files_asked(mirror) == set()
    assert (folder / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes()


def test_progress_reports_do_not_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise two reports would be printed on one line."""
    from ovis_core.weights import download

    monkeypatch.setattr(download, "INTERVAL", 0.0)
    one, met = threading.Lock(), []

    def report(progress: Any) -> None:
        if not one.acquire(blocking=False):
            met.append(progress)
            return
        time.sleep(0.002)
        one.release()

    with download._reporting(tmp_path, [], report) as say:
        for _ in range(50):
            say("checking")
    assert met == []


def test_interrupted_download_resumes(mirror: Mirror, models: Path) -> None:
    from ovis_core.weights.download import DownloadError
    from ovis_core.weights.release_folder import is_complete

    mirror.cut_after = 11 << 20
    with pytest.raises(DownloadError, match=r"cannot be reached .*; check the connection, .* or put config\.json"):
        fetch()
    assert not is_complete(models / NAME)
    (part,) = (models / NAME).glob("*.safetensors.*.part")
    size = part.stat().st_size
    assert size > 0
    mirror.cut_after = None
    mirror.asked.clear()
    assert is_complete(fetch())
    assert f"bytes={size}-" in {wanted for _, _, wanted in mirror.asked}
    assert not list((models / NAME).glob("*.part"))


def test_download_continues_after_lost_connections(
    mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download resumes by itself as long as data comes."""
    from ovis_core.weights import file_fetcher

    monkeypatch.setattr(file_fetcher, "PAUSES", (0.0, 0.0))
    mirror.cut_every = 2 << 20
    folder = fetch()
    assert (folder / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes()
    assert len([path for method, path, _ in mirror.asked if method == "GET" and path.endswith(WEIGHTS)]) > 2


def test_download_from_a_server_without_ranges(mirror: Mirror, models: Path) -> None:
    from ovis_core.weights.file_fetcher import part_of
    from ovis_core.weights.hub import RepositoryFile

    mirror.no_ranges = True
    (entry,) = (entry for entry in describe(mirror.folder)["siblings"] if entry["rfilename"] == WEIGHTS)
    (models / NAME).mkdir(parents=True)
    part_of(models / NAME, RepositoryFile(WEIGHTS, entry["size"], entry["lfs"]["sha256"])).write_bytes(b"\0" * 1000)
    assert (fetch() / WEIGHTS).read_bytes() == (mirror.folder / WEIGHTS).read_bytes()


def test_damaged_download_is_detected(mirror: Mirror, way: str, models: Path) -> None:
    from ovis_core.weights.download import DownloadError
    from ovis_core.weights.release_folder import is_complete

    mirror.damage = True
    with pytest.raises(DownloadError, match=r"\.safetensors arrived damaged and was deleted; run the download"):
        fetch()
    assert not is_complete(models / NAME)
    mirror.damage = False
    assert is_complete(fetch())


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_changed_file_of_the_same_size_is_downloaded_again(mirror: Mirror, models: Path, name: str) -> None:
    """Bytes that changed on the disk, or another revision's file."""
    file = fetch() / name
    right = file.read_bytes()
    file.write_bytes(right[:-5] + bytes([right[-5] ^ 1]) + right[-4:])
    mirror.asked.clear()
    fetch()
    assert file.read_bytes() == right
    assert files_asked(mirror) == {name}


def test_error_for_two_downloads_into_one_folder(mirror: Mirror, models: Path) -> None:
    from filelock import FileLock

    from ovis_core.weights.download import LOCK, DownloadError

    (models / NAME).mkdir(parents=True)
    with FileLock(models / NAME / LOCK), pytest.raises(DownloadError, match=r"another download into .* is running"):
        fetch()
    assert (fetch() / WEIGHTS).is_file()


def test_address_of_a_repository_is_accepted_as_its_name(mirror: Mirror, models: Path) -> None:
    assert fetch(" https://huggingface.co/owner/small/ ") == models / NAME


def test_interrupt(mirror: Mirror, way: str, models: Path) -> None:
    """The interrupt acts at once, also without data; the next run need not wait, and resumes."""
    from comfy import model_management

    mirror.pause = 0.5
    interrupted = []

    def kept() -> int:
        return sum(part.stat().st_size for part in (models / NAME).glob("*.part"))

    def interrupt() -> None:
        begun = time.monotonic()
        while way == "http" and kept() == 0 and time.monotonic() < begun + 30:
            time.sleep(0.05)
        interrupted.append(time.monotonic())
        model_management.interrupt_current_processing(True)

    timer = threading.Timer(3.0 if way == "xet" else 0.0, interrupt)
    timer.start()
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            fetch()
        ended = time.monotonic()
    finally:
        timer.cancel()
        model_management.interrupt_current_processing(False)
    assert ended - interrupted[0] < 1.0
    mirror.pause = 0.0
    so_far = kept()
    mirror.asked.clear()
    assert (fetch() / WEIGHTS).is_file()
    if way == "http":
        assert so_far > 0
        assert [wanted for _, _, wanted in mirror.asked if wanted and not wanted.startswith("bytes=0-")]


def test_interrupt_while_files_are_checked(mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy import model_management

    from ovis_core.weights import file_fetcher

    folder = fetch()
    os.utime(folder / WEIGHTS)
    monkeypatch.setattr(file_fetcher, "BLOCK", 1 << 10)
    model_management.interrupt_current_processing(True)
    with pytest.raises(model_management.InterruptProcessingException):
        fetch()
    model_management.interrupt_current_processing(False)
    assert fetch() == folder


@pytest.mark.parametrize("content", [b"<html>", b"[]"])
def test_error_for_a_server_that_is_not_a_hub(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Such as the page of a firewall, with status 200."""
    from ovis_core.weights.download import DownloadError, download

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        words = (
            r"sent an answer that cannot be used \(.*\); run the download again, check HF_ENDPOINT, or put config\.json"
        )
        with pytest.raises(DownloadError, match=words):
            download("owner/small", tmp_path / "here")
        server.shutdown()


@pytest.mark.parametrize(("code", "words"), [(500, "answered with an error"), (403, "or it needs a login; check")])
def test_errors_for_http_error_statuses(
    mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    from ovis_core.weights import download, file_fetcher

    monkeypatch.setattr(file_fetcher, "PAUSES", (0.0,))
    mirror.refused = code
    with pytest.raises(download.DownloadError, match=words):
        fetch()


@pytest.mark.parametrize("name", ["small", "../small", "owner/..", "a/b/c", "", "owner/sm all", "-x"])
def test_errors_for_invalid_repository_names(models: Path, name: str) -> None:
    from ovis_core.weights.download import DownloadError

    with pytest.raises(DownloadError, match=r"repository: expected a name such as .*, got .*; write it as owner/name"):
        fetch(name)
    assert not models.exists()


def test_error_for_an_unknown_repository(mirror: Mirror, models: Path) -> None:
    from ovis_core.weights.download import DownloadError

    with pytest.raises(DownloadError, match=r"repository: http://127\S+ has no owner/other at main"):
        fetch("owner/other")


def test_errors_without_network(mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.weights.download import DownloadError

    by_hand = r"set HF_ENDPOINT to a mirror of the hub, or put config\.json, .* of owner/small into .*small by hand\.$"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    words = rf"http://127\.0\.0\.1:9 cannot be reached \(.*\); check the connection, {by_hand}"
    with pytest.raises(DownloadError, match=words):
        fetch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError) as refusal:
        fetch()
    assert str(refusal.value) == (
        "HF_HUB_OFFLINE is set, so nothing is downloaded from http://127.0.0.1:9; unset it and restart ComfyUI."
    )


def test_checked_release_is_used_without_network(mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node may stay in a graph; a changed folder, or one of another repository, is not accepted."""
    from ovis_core.weights.download import DownloadError, download

    folder = fetch()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch() == folder
    with pytest.raises(DownloadError, match="cannot be reached"):
        download("owner/small", folder, "another")
    with pytest.raises(DownloadError, match="cannot be reached"):
        download("owner/small", folder, recheck=True)
    os.utime(folder / WEIGHTS)
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch()
    monkeypatch.setenv("HF_ENDPOINT", mirror.url)
    fetch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch() == folder
    (folder / WEIGHTS).unlink()
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch()


@pytest.mark.parametrize("source", ["network", "cache"])
@pytest.mark.parametrize("full", [False, True])
def test_interrupted_update_is_not_used_without_network(
    mirror: Mirror, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, full: bool
) -> None:
    """A folder with files of two revisions is incomplete, however the first ones were downloaded."""
    from ovis_core.weights.download import DownloadError, download
    from ovis_core.weights.file_fetcher import Stopped

    folder = fetch()
    before = {file.name: file.read_bytes() for file in folder.glob("model-*.safetensors")}
    for name, content in before.items():
        (mirror.folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 255]))
    if source == "cache":
        (first,) = before.keys() - {WEIGHTS}
        blob = hub_blob(mirror, tmp_path, first)
        blob.parent.mkdir(parents=True)
        shutil.copy(mirror.folder / first, blob)
    if full:  # the record cannot be written, only removed
        (folder / ".checked.part").mkdir()
    stop = threading.Event()

    def report(progress: Any) -> None:
        if progress.doing == f"fetching {WEIGHTS}":
            stop.set()

    with pytest.raises(Stopped):
        download("owner/small", folder, report=report, stop=stop)
    assert [name for name in before if (folder / name).read_bytes() == before[name]] == [WEIGHTS]
    with monkeypatch.context() as offline:
        offline.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(DownloadError, match="cannot be reached"):
            fetch()
    if full:
        (folder / ".checked.part").rmdir()
    fetch()
    assert all((folder / name).read_bytes() == (mirror.folder / name).read_bytes() for name in before)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch() == folder


def hub_blob(mirror: Mirror, tmp_path: Path, name: str) -> Path:
    """Where the hub's cache keeps a file of the mirror's."""
    (entry,) = [entry for entry in describe(mirror.folder)["siblings"] if entry["rfilename"] == name]
    return tmp_path / "hf" / "hub" / "models--owner--small" / "blobs" / entry["lfs"]["sha256"]


@pytest.mark.parametrize("kept", [1000, 12_345_678])
def test_xet_download_resumes(mirror: Mirror, models: Path, kept: int) -> None:
    from ovis_core.weights.file_fetcher import part_of
    from ovis_core.weights.hub import RepositoryFile

    mirror.xet = True
    entry = max(describe(mirror.folder)["siblings"], key=lambda entry: entry["size"])
    right = (mirror.folder / entry["rfilename"]).read_bytes()
    assert len(right) > 12_345_678
    (models / NAME).mkdir(parents=True)
    part_of(models / NAME, RepositoryFile(entry["rfilename"], entry["size"], entry["lfs"]["sha256"])).write_bytes(
        right[:kept]
    )
    assert (fetch() / entry["rfilename"]).read_bytes() == right
    assert f"bytes={kept}-{len(right) - 1}" in {wanted for path, _, wanted in _asked_of(mirror, "/reconstructions/")}


def _asked_of(mirror: Mirror, part: str) -> list[tuple[str, str, str | None]]:
    return [(path, method, wanted) for method, path, wanted in mirror.asked if part in path]


def test_error_for_too_little_free_space(mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.weights import download, file_fetcher

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(file_fetcher.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    words = r"small: expected .* GB of free disk space, got 0\.0 GB; free some space and run the download again\."
    with pytest.raises(download.DownloadError, match=words):
        download.download("owner/small", models / "small", "main")
    assert not list((models / "small").glob("*.safetensors"))


def script(folder: Path, name: str = "owner/small") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "download.py", folder, "--repository", name]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def refused(mirror: Mirror, folder: Path) -> str:
    """The error of a download that fails on this machine."""
    ran = script(folder)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert mirror.url not in ran.stderr, "the hub is not to blame"
    return ran.stderr.strip().splitlines()[-1]


def test_error_for_a_full_disk(mirror: Mirror, tmp_path: Path) -> None:
    from ovis_core.weights.file_fetcher import part_of
    from ovis_core.weights.hub import RepositoryFile

    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (weights,) = (entry for entry in describe(mirror.folder)["siblings"] if entry["rfilename"] == WEIGHTS)
    folder = tmp_path / "here"
    folder.mkdir()
    part_of(folder, RepositoryFile(WEIGHTS, weights["size"], weights["lfs"]["sha256"])).symlink_to("/dev/full")
    said = refused(mirror, folder)
    assert said.startswith(f"the disk of {folder} is full (No space left on device); free some space and run the")


def test_errors_for_files_and_folders_in_the_way(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    (folder / WEIGHTS).mkdir(parents=True)
    said = refused(mirror, folder)
    assert said == f"{folder / WEIGHTS}: expected a file, got a folder; move it away and run the download again."
    assert not [path for _, path, _ in mirror.asked if "safetensors" in path]
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below" / "it"):
        said = refused(mirror, place)
        assert said == f"{file}: expected a folder, got a file; move it away and run the download again."


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write anywhere")
def test_error_for_a_folder_without_write_permission(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir(mode=0o500)
    said = refused(mirror, folder)
    assert re.match(rf"{folder}\S* cannot be read or written \(Permission denied\); check its permissions", said)


def test_download_script(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    ran = script(folder)
    assert ran.returncode == 0, ran.stderr
    assert f"{folder} is complete." in ran.stdout
    assert (folder / WEIGHTS).is_file()
    for name, words in (
        ("owner/other", "has no owner/other"),
        ("a b", "repository: expected a name such as AIDC-AI/Ovis-U1-3B, got 'a b'"),
    ):
        ran = script(folder, name)
        assert ran.returncode == 1
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr


def test_download_script_checks_values(mirror: Mirror, tmp_path: Path) -> None:
    """The files of the mirror can be damaged themselves."""
    command = [sys.executable, ROOT / "scripts" / "download.py", tmp_path / "here", "--repository", "owner/small"]

    def checked() -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, command), "--check-values"], capture_output=True, text=True, check=False)

    assert checked().returncode == 0
    tensors = load_file(mirror.folder / WEIGHTS)
    tensors[next(name for name, tensor in tensors.items() if tensor.is_floating_point())].view(-1)[0] = torch.nan
    save_file(tensors, mirror.folder / WEIGHTS, metadata={"format": "pt"})
    ran = checked()
    assert ran.returncode == 1
    assert "contains NaN or infinity, so the file is damaged" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("onward", "same"),
    [
        ("https://hub.example/moved", True),
        ("http://hub.example/moved", False),
        ("https://storage.example/moved", False),
        ("https://hub.example:8443/moved", False),
    ],
)
def test_redirects_keep_the_token_only_on_the_same_scheme_and_host(
    monkeypatch: pytest.MonkeyPatch, onward: str, same: bool
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    request = urllib.request.Request("https://hub.example/file")
    hub._authorize(request)
    assert request.get_header("Authorization") == "Bearer hf_secret"
    new = hub._KeepAuthorization().redirect_request(request, None, 302, "Found", Message(), onward)
    assert (new.get_header("Authorization") == "Bearer hf_secret") == same
