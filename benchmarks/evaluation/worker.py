"""A whole ComfyUI in this process, except that no port is open: graphs go straight into its queue."""

from __future__ import annotations

import asyncio
import importlib
import io
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

import workspace
from console import UserError

from .fingerprint import versions, weights_hash
from .graphs import ANSWER, LETTERS, SAVE, Graph, graph
from .record import Made, Work

POLL = 0.002  # seconds between looks at ComfyUI's history
LOADER = "OvisU1Loader"
COLUMNS = 2  # of a grid
ERRORS = {"execution_error", "execution_interrupted"}


@dataclass(frozen=True)
class Setup:
    """What a worker starts with.

    cpu       run on the CPU
    versions  what must be installed, and
    weights   the hash that the weights must have, so that machines do not differ
    """

    comfyui: Path
    model: Path
    weight_dtype: str
    cpu: bool
    versions: dict[str, str]
    weights: str


class Worker:
    """One ComfyUI that holds one model; a process can have one."""

    def __init__(self, setup: Setup) -> None:
        """Raises UserError where it does not start."""
        self._folder = tempfile.TemporaryDirectory(prefix="ovis-u1-evaluate-", ignore_cleanup_errors=True)
        self._base = workspace.make_base(Path(self._folder.name), workspace.ROOT, setup.comfyui)
        os.chdir(self._base)  # where newer ComfyUIs leave a log
        models = self._base / "models" / "ovis_u1"
        if setup.model.is_dir():
            workspace.link_folder(setup.model, models / setup.model.name)
        else:
            workspace.link_folder(setup.model.parent, models)
        self._model = {"model_name": setup.model.name, "weight_dtype": setup.weight_dtype}
        # ComfyUI writes to these streams' buffers, which close when nobody holds the streams any more.
        self._streams = sys.stdout, sys.stderr
        self._loop, self._server = _start(setup, self._base)
        threading.Thread(target=self._loop.run_until_complete, args=(self._server.publish_loop(),), daemon=True).start()
        import execution

        self._validate = execution.validate_prompt
        self.ready()

    def ready(self) -> None:
        """Raises UserError where ComfyUI has no pack or finds no model."""
        import nodes

        if LOADER not in nodes.NODE_CLASS_MAPPINGS:
            raise UserError("ComfyUI did not load the pack; start ComfyUI itself to see why")
        loader = nodes.NODE_CLASS_MAPPINGS[LOADER]
        for spec in loader.define_schema().inputs:
            if spec.id == "weight_dtype" and self._model[spec.id] not in spec.options:
                raise UserError(f"--weight-dtype: {self._model[spec.id]!r} is none of {', '.join(spec.options)}")
        said = loader.validate_inputs(self._model["model_name"])
        if said is not True:
            raise UserError(f"--model: {said}")
        nodes.NODE_CLASS_MAPPINGS[LETTERS] = _letters(loader)

    def run(self, work: Work) -> Made:
        """Makes what is asked; whatever goes wrong is the answer's `error`."""
        try:
            return self._run(work)
        except UserError as error:
            return Made(error=str(error))
        except Exception as error:
            return Made(error=f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _run(self, work: Work) -> Made:
        names = self._give(work)
        images: list[bytes] = []
        text, chances, seconds = None, (), 0.0
        for seed in work.seeds:
            outputs, taken = self._execute(graph(work, self._model, names, seed, uuid.uuid4().hex))
            seconds += taken
            images += [self._take(entry) for entry in outputs.get(SAVE, {}).get("images", ())]
            for said in outputs.get(ANSWER, {}).get("text", ()):
                text = said
            if not outputs:
                raise UserError("ComfyUI gave nothing back")
        if work.task == "choice":
            chances = tuple(json.loads(text))
            text = work.choices[max(range(len(chances)), key=chances.__getitem__)]
        if work.grid:
            images = [_grid(images)]
        return Made(tuple(images), text, chances, seconds)

    def _give(self, work: Work) -> list[str]:
        """Puts pictures among ComfyUI's inputs; their names."""
        pictures = [_opened(data) for data in work.images]
        files = work.images if len(pictures) < 2 else _one_size(pictures)
        for i, data in enumerate(files):
            (self._base / "input" / f"source_{i}").write_bytes(data)
        return [f"source_{i}" for i in range(len(files))]

    def _take(self, entry: dict[str, str]) -> bytes:
        """What ComfyUI saved, taken out of its folder."""
        file = self._base / "output" / entry["subfolder"] / entry["filename"]
        data = file.read_bytes()
        file.unlink()
        return data

    def _execute(self, prompt: Graph) -> tuple[dict[str, Any], float]:
        """Outputs of a graph by node, and the seconds that ComfyUI ran it. Raises UserError with what failed."""
        name = uuid.uuid4().hex
        checked = asyncio.run_coroutine_threadsafe(self._validate(name, prompt, None), self._loop).result()
        valid, error, outputs, node_errors = checked
        if not valid:
            raise UserError(_refusal(error, node_errors))
        queue = self._server.prompt_queue
        queue.put((0, name, prompt, {}, outputs, {}))
        while name not in queue.history:
            time.sleep(POLL)
        entry = queue.get_history(name)[name]
        queue.delete_history_item(name)
        messages = entry["status"]["messages"]
        for kind, said in messages:
            if kind in ERRORS:
                raise UserError(" ".join(str(said.get("exception_message", "it was interrupted")).split()))
        return entry["outputs"], (messages[-1][1]["timestamp"] - messages[0][1]["timestamp"]) / 1e3


class RemoteWorker(Worker):
    """A worker of a machine that may have other versions or weights than the one where the run began."""

    def __init__(self, setup: Setup) -> None:
        """Raises UserError where it has, too."""
        _need_same(setup)
        super().__init__(setup)


def _need_same(setup: Setup) -> None:
    for name, version in versions(setup.comfyui).items():
        if version != setup.versions[name]:
            raise UserError(f"this machine has {name} {version} and the run began with {setup.versions[name]}")
    if not setup.model.exists():
        raise UserError(f"--model: {setup.model} is not there; every machine needs it in the same place")
    if weights_hash(setup.model) != setup.weights:
        raise UserError(f"--model: {setup.model} holds other weights than those that the run began with")


def _start(setup: Setup, base: Path) -> tuple[Any, Any]:
    """ComfyUI's event loop and server, made as its main.py makes them; every node is loaded."""
    options = ["--base-directory", str(base), "--temp-directory", str(base), "--disable-api-nodes"]
    # A graph in each PNG would carry this folder's name, and the same image would not be the same file.
    options += ["--verbose", "ERROR", "--disable-metadata"]
    if "--database-url" in (setup.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8"):
        options += ["--database-url", f"sqlite:///{(base / 'comfyui.db').as_posix()}"]
    if setup.cpu:
        options.append("--cpu")
    # ComfyUI's folders must come first: it has modules named nodes, server and utils.
    sys.path.insert(0, str(setup.comfyui))
    ours, sys.argv = sys.argv, ["main.py", *options]
    try:
        loop, server, _ = importlib.import_module("main").start_comfyui()
    finally:
        sys.argv = ours
    import comfy.utils

    comfy.utils.PROGRESS_BAR_ENABLED = False  # a bar for each image would run through that of all
    return loop, server


def _letters(loader: type) -> type:
    """A node class: the probability of each choice as the answer's first word, from the pack that ComfyUI loaded."""
    pack = loader.__module__.removesuffix(".nodes.load")
    choose = importlib.import_module(f"{pack}.ovis_core.native.understanding").choose

    class Letters:
        """CLIP, images, question and choices -> probabilities."""

        RETURN_TYPES = ()
        OUTPUT_NODE = True
        FUNCTION = "answer"
        CATEGORY = "Ovis-U1"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            """As ComfyUI asks it."""
            text = ("STRING", {})
            words = {"prompt": text, "choices": text, "name": text}
            return {"required": {"clip": ("CLIP",), "image": ("IMAGE",), **words}}

        def answer(self, clip: Any, image: Any, prompt: str, choices: str, name: str) -> dict[str, Any]:
            """Answers."""
            return {"ui": {"text": [json.dumps(choose(clip, image, prompt, json.loads(choices)))]}}

    return Letters


def _refusal(error: dict[str, Any], node_errors: dict[str, Any]) -> str:
    """ComfyUI's reasons for not taking a graph, in one sentence."""
    reasons = [reason for node in node_errors.values() for reason in node["errors"]] or [error]
    words = (" ".join(str(reason.get(key) or "") for key in ("message", "details")) for reason in reasons)
    return "; ".join(" ".join(said.split()) for said in words)


def _opened(data: bytes) -> Image.Image:
    """A picture. Raises UserError where it is not whole: ComfyUI would take it, and paint grey what is missing."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"its image is damaged: {error}") from error
    return image


def _one_size(pictures: Sequence[Image.Image]) -> list[bytes]:
    """Pictures on white of one size, as one batch must have it."""
    size = tuple(max(picture.size[side] for picture in pictures) for side in (0, 1))
    made = []
    for picture in pictures:
        canvas = Image.new("RGB", size, "white")
        canvas.paste(picture.convert("RGB"), tuple((size[side] - picture.size[side]) // 2 for side in (0, 1)))
        made.append(_png(canvas))
    return made


def _grid(files: Sequence[bytes]) -> bytes:
    """Images of one size side by side, row by row."""
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    width, height = pictures[0].size
    rows = -(-len(pictures) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * width, rows * height))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % COLUMNS * width, i // COLUMNS * height))
    return _png(grid)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()
