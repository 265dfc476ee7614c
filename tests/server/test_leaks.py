"""Memory of a running ComfyUI over many prompts, and the memory that its own buttons free."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import make_checkpoint
import workspace
from comfy_server import ComfyServer
from helpers.device import DEVICE_ARGS, ON_GPU
from helpers.graphs import Graph, load, text_to_image
from helpers.paths import ROOT, comfyui_path
from helpers.pictures import picture

MIB = 1 << 20
RUNS = 30
# glibc's allocator then returns freed memory at once, so that the rest is still in use.
GIVES_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
PICTURE = "memory.png"
SIDES = 800, 464  # pixels: a copy of it for each run would be ten times the limit


@pytest.fixture(scope="module")
def own_server(raw_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server for these tests only, with a model that is large compared with other changes of memory."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells a process's memory this way")
    base = workspace.make_base(tmp_path_factory.mktemp("memory"), ROOT, comfyui_path())
    make_checkpoint.write_release(base / "models" / "ovis_u1" / "tiny", raw_config)
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in GIVES_BACK.items():
            patch.setenv(name, value)
        running = stack.enter_context(ComfyServer(comfyui_path(), base, DEVICE_ARGS))
        file = tmp_path_factory.mktemp("picture") / PICTURE
        picture(*SIDES).save(file)
        running.upload(file)
        yield running


def memory(server: ComfyServer) -> int:
    """Bytes of the server's process."""
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


def prompts(server: ComfyServer) -> list[tuple[Graph, str]]:
    """Text to image, edit, understand; and the node that has the seed."""
    info = server.object_info()
    edit = load("edit", info).set("LoadImage", image=PICTURE).set("OvisU1Sampler", steps=2)
    edit.set("OvisU1EditEncode", megapixels=0.1)
    understand = load("understand", info).set("LoadImage", image=PICTURE)
    understand.set("OvisU1Understand", max_new_tokens=6, sampling=True)
    return [
        (text_to_image(info, steps=2), "OvisU1Sampler"),
        (edit, "OvisU1Sampler"),
        (understand, "OvisU1Understand"),
    ]


def test_memory_does_not_grow_over_thirty_runs(own_server: ComfyServer) -> None:
    graphs, used = prompts(own_server), []
    for run in range(RUNS):
        for graph, seeded in graphs:
            own_server.run(graph.set(seeded, seed=run).prompt)
        used.append(memory(own_server))
    # A leak increases the minimum over several runs.
    grown = min(used[-12:]) - min(used[3:15])
    assert grown < 6 * MIB, " ".join(str(value // MIB) for value in used)


@pytest.mark.skipif(ON_GPU, reason="on a GPU the weights are not in RAM")
def test_unload_button_frees_the_model_s_memory(own_server: ComfyServer) -> None:
    files = (own_server.base / "models" / "ovis_u1" / "tiny").glob("*.safetensors")
    size = sum(file.stat().st_size for file in files)
    graph, seeded = prompts(own_server)[0]
    own_server.run(graph.set(seeded, seed=RUNS).prompt)
    before = memory(own_server)
    own_server.free()
    until = time.monotonic() + 20
    while before - memory(own_server) < 0.9 * size and time.monotonic() < until:
        time.sleep(0.2)
    assert before - memory(own_server) >= 0.9 * size
    own_server.run(graph.set(seeded, seed=RUNS + 1).prompt)
    assert memory(own_server) < before + 8 * MIB
