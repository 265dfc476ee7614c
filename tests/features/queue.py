"""The queue, the cache, and the saved results."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

from PIL import Image

from .table import PROMPT, STEPS, Bench, Lab, row

AREA = "queue"


def image_of(bench: Bench, seed: int, steps: int = STEPS) -> str:
    """A SaveImage at the end of the bench; its node."""
    pixels = bench.node("OvisU1Decode", samples=bench.ksampler(seed=seed, steps=steps), vae=bench.vae)
    return bench.add("SaveImage", images=pixels, filename_prefix="features/queue")


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0  # seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@row(AREA, "20 prompts, one interrupted, two deleted", "the others finish, each with its own image")
def many(lab: Lab) -> None:
    server = lab.server
    first = lab.bench()
    image_of(first, 100, steps=500)
    ids = [server.queue(first.prompt)]
    saves = {}
    for seed in range(101, 120):
        bench = lab.bench()
        save = image_of(bench, seed, steps=1)
        ids.append(server.queue(bench.prompt))
        saves[ids[-1]] = save
    assert server.waiting() == 20
    deleted = ids[5], ids[9]
    server.delete(deleted)
    assert server.waiting() == 18
    time.sleep(0.5)
    server.interrupt()
    until(lambda: server.waiting() == 0)
    assert server.history(ids[0])["status"]["status_str"] == "error"
    assert not any(server.history(i) for i in deleted)
    seen = set()
    for i in ids[1:]:
        if i not in deleted:
            entry = server.history(i)
            assert entry["status"]["completed"], entry["status"]
            (image,) = entry["outputs"][saves[i]]["images"]
            seen.add(server.image(image))
    assert len(seen) == 17


@row(AREA, "cache", "a second prompt that differs in one widget computes only the nodes that depend on it")
def cache(lab: Lab) -> None:
    bench = lab.bench()
    sampled = bench.ksampler(seed=1)
    pixels = bench.node("OvisU1Decode", samples=sampled, vae=bench.vae)
    bench.add("SaveImage", images=pixels, filename_prefix="features/cache")
    bench.execute()
    bench.set_node(sampled[0], seed=2)
    executed = bench.execute().executed_nodes
    assert {bench.prompt[node]["class_type"] for node in executed} == {"KSampler", "OvisU1Decode", "SaveImage"}
    again = bench.execute().executed_nodes
    assert again == []


@row(AREA, "/history, /view and the PNG", "contain the image, the prompt and the page's workflow")
def results(lab: Lab) -> None:
    bench = lab.bench()
    save = image_of(bench, 5)
    workflow = {"nodes": [], "links": [], "extra": {"mark": "features"}, "version": 0.4}
    result = lab.server.run(bench.prompt, workflow=workflow)
    entry = lab.server.history(result.prompt_id)
    assert entry["prompt"][2] == bench.prompt
    (image,) = result.outputs[save]["images"]
    assert entry["outputs"][save]["images"] == [image]
    with Image.open(io.BytesIO(lab.server.image(image))) as opened:
        carried = json.loads(opened.info["prompt"])
        assert {node: (v["class_type"], v["inputs"]) for node, v in carried.items()} == {
            node: (v["class_type"], v["inputs"]) for node, v in bench.prompt.items()
        }
        assert PROMPT in opened.info["prompt"]
        assert json.loads(opened.info["workflow"]) == workflow
