"""The download, from a mirror on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from mirror import Mirror, describe, serve

WEIGHTS = "model-00002-of-00002.safetensors"
NAME = "owner--small"  # the folder; the authors' own has no owner before it


@pytest.fixture
def mirror(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    repository = Path(shutil.copytree(release, tmp_path / "repository"))
    (repository / "modeling_ovis_u1.py").write_text("raise SystemExit")
    (repository / "pytorch_model.bin").write_bytes(b"PK")
    with serve(repository) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "5")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for proxy in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(proxy, raising=False)
        yield running


@pytest.fixture
def models(comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the node puts models."""
    from ovis_core.native import fetching

    monkeypatch.setattr(fetching, "roots", lambda: [tmp_path / "models"])
    return tmp_path / "models"


def fetch(name: str = "owner/small") -> Path:
    from ovis_core.native.fetching import fetch

    return fetch(name)


def test_a_whole_release(mirror: Mirror, models: Path, config: Any) -> None:
    from ovis_core.checkpoint import open_release

    folder = fetch()
    assert folder == models / NAME
    assert open_release(folder).config == config
    assert not list(folder.glob("*.py")) + list(folder.glob("*.bin"))
    mirror.asked.clear()
    assert fetch() == folder
    assert not [path for _, path, _ in mirror.asked if "resolve" in path]


def test_reports_come_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or two of them would share a line."""
    from ovis_core import download

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


def test_it_goes_on_where_it_stopped(mirror: Mirror, models: Path) -> None:
    from ovis_core.checkpoint import is_complete
    from ovis_core.download import DownloadError

    mirror.cut_after = 11 << 20  # the client writes 10 MiB at once
    with pytest.raises(DownloadError, match=r"cannot be reached.* or put config\.json"):
        fetch()
    assert not is_complete(models / NAME)
    (part,) = (models / NAME).glob("*.safetensors.*.part")
    size = part.stat().st_size
    assert size > 0
    mirror.cut_after = None
    mirror.asked.clear()
    assert is_complete(fetch())
    assert f"bytes={size}-" in {(wanted or "").split("-")[0] + "-" for _, _, wanted in mirror.asked}
    assert not list((models / NAME).glob("*.part"))


def test_damage_is_seen(mirror: Mirror, models: Path) -> None:
    from ovis_core.checkpoint import is_complete
    from ovis_core.download import DownloadError

    mirror.damage = True
    with pytest.raises(DownloadError, match=r"\.safetensors came damaged and was deleted; run it again"):
        fetch()
    assert not is_complete(models / NAME)
    mirror.damage = False
    assert is_complete(fetch())


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_of_the_same_size_is_not_taken_for_it(mirror: Mirror, models: Path, name: str) -> None:
    """Bytes that turned on the disk, or another revision's file."""
    file = fetch() / name
    right = file.read_bytes()
    file.write_bytes(right[:-5] + bytes([right[-5] ^ 1]) + right[-4:])
    mirror.asked.clear()
    fetch()
    assert file.read_bytes() == right
    assert {path.rsplit("/", 1)[1] for _, path, _ in mirror.asked if "resolve" in path} == {name}


def test_two_at_once(mirror: Mirror, models: Path) -> None:
    from filelock import FileLock

    from ovis_core.download import LOCK, DownloadError

    (models / NAME).mkdir(parents=True)
    with FileLock(models / NAME / LOCK), pytest.raises(DownloadError, match=r"another download into .* is running"):
        fetch()
    assert (fetch() / WEIGHTS).is_file()


def test_a_page_s_address_is_a_name_too(mirror: Mirror, models: Path) -> None:
    assert fetch(" https://huggingface.co/owner/small/ ") == models / NAME


def test_a_broken_library(mirror: Mirror, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.download import DownloadError

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "huggingface_hub.py").write_text("raise ImportError('no hub today')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    with pytest.raises(DownloadError, match=r"cannot be imported \(no hub today\); install it and filelock"):
        fetch()
    (broken / "huggingface_hub.py").write_text("import os; os.write(2, b'one\\ntwo\\n'); os._exit(3)")
    with pytest.raises(DownloadError, match=r"stopped with exit code 3 \(two\); run it again"):
        fetch()


def test_interrupt(mirror: Mirror, models: Path) -> None:
    from comfy import model_management

    mirror.pause = 0.2
    timer = threading.Timer(4.0, model_management.interrupt_current_processing, [True])
    timer.start()
    begun = time.monotonic()
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            fetch()
    finally:
        timer.cancel()
        model_management.interrupt_current_processing(False)
    assert time.monotonic() - begun < 6.0
    mirror.pause = 0.0
    assert (fetch() / WEIGHTS).is_file()


@pytest.mark.parametrize("name", ["small", "../small", "owner/..", "a/b/c", "", "owner/sm all", "-x"])
def test_names_that_are_none(models: Path, name: str) -> None:
    from ovis_core.download import DownloadError

    with pytest.raises(DownloadError, match=r"repository: .* is no name of a repository"):
        fetch(name)
    assert not models.exists()


def test_no_such_repository(mirror: Mirror, models: Path) -> None:
    from ovis_core.download import DownloadError

    with pytest.raises(DownloadError, match=r"repository: http://127\S+ has no owner/other at main"):
        fetch("owner/other")


def test_no_network(mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ovis_core.download import DownloadError

    by_hand = r"set HF_ENDPOINT to a mirror of it; or put config\.json, .* of owner/small into .*small by hand\."
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=rf"http://127\.0\.0\.1:9 cannot be reached.*{by_hand}"):
        fetch()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=by_hand):
        fetch()


def test_no_room(mirror: Mirror, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from ovis_core import download

    monkeypatch.setattr(constants, "ENDPOINT", mirror.url)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(download.DownloadError, match=r"disk of .* has 0\.0 GB left and .* GB are missing; make room"):
        download.download("owner/small", models / "small", "main")
    assert not list((models / "small").glob("*.safetensors"))


def script(folder: Path, name: str = "owner/small") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "download.py", folder, "--repository", name]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def refused(mirror: Mirror, folder: Path) -> str:
    """What a download says that fails on this machine."""
    ran = script(folder)
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert mirror.url not in ran.stderr, "the hub is not to blame"
    return ran.stderr.strip().splitlines()[-1]


def test_a_full_disk(mirror: Mirror, tmp_path: Path) -> None:
    from ovis_core.download import File, _part

    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (weights,) = (entry for entry in describe(mirror.folder)["siblings"] if entry["rfilename"] == WEIGHTS)
    folder = tmp_path / "here"
    folder.mkdir()
    _part(folder, File(WEIGHTS, weights["size"], weights["lfs"]["sha256"])).symlink_to("/dev/full")
    said = refused(mirror, folder)
    assert said.startswith(f"the disk of {folder} is full (No space left on device); make room and run it again")


def test_what_is_in_the_way(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    (folder / WEIGHTS).mkdir(parents=True)
    said = refused(mirror, folder)
    assert said == f"{folder / WEIGHTS} is a folder where a file belongs; move it away and run it again."
    assert not [path for _, path, _ in mirror.asked if "safetensors" in path]
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below" / "it"):
        said = refused(mirror, place)
        assert said == f"{file} is a file where a folder belongs; move it away and run it again."


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="this user may write anywhere")
def test_a_folder_that_may_not_be_written(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir(mode=0o500)
    said = refused(mirror, folder)
    assert re.match(rf"{folder}\S* cannot be read or written \(Permission denied\); see to its permissions", said)


def test_the_script(mirror: Mirror, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    ran = script(folder)
    assert ran.returncode == 0, ran.stderr
    assert f"{folder} is complete." in ran.stdout
    assert (folder / WEIGHTS).is_file()
    for name, words in (("owner/other", "has no owner/other"), ("a b", "repository: 'a b' is no name of a repository")):
        ran = script(folder, name)
        assert ran.returncode == 1
        assert words in ran.stderr
        assert "Traceback" not in ran.stderr
