"""A worker: a ComfyUI in this process that makes records."""

from __future__ import annotations

import importlib
import io
import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

import workspace
from comfy_in_process import ComfyInProcess
from console import UserError
from record import Output, Record
from task_graphs import ANSWER, CHOOSE, SAVE, graph

# The graph in a PNG contains a folder's name, so that equal images would not be equal files.
OPTIONS = ("--disable-metadata", "--disable-api-nodes", "--verbose", "ERROR")


class Setup(NamedTuple):
    """A worker's settings; identity: the `run_folder.identity` that it must have."""

    comfyui: Path
    model: Path
    weight_dtype: str
    cpu: bool
    identity: dict[str, str]


class ComfyUIWorker:
    """One ComfyUI with one model; a process can have one. Raises UserError if it does not start."""

    def __init__(self, setup: Setup) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ovis-u1-evaluate-", ignore_cleanup_errors=True)
        self._base = workspace.make_base(Path(self._folder.name), workspace.ROOT, setup.comfyui)
        models, model = self._base / "models" / "ovis_u1", setup.model
        workspace.link_folder(*((model, models / model.name) if model.is_dir() else (model.parent, models)))
        self._model = {"model_name": model.name, "weight_dtype": setup.weight_dtype}
        self._comfyui = ComfyInProcess(setup.comfyui, self._base, *OPTIONS, *(["--cpu"] if setup.cpu else []))
        import comfy.utils

        import nodes

        comfy.utils.PROGRESS_BAR_ENABLED = False  # the driver shows one for all records
        if "OvisU1Loader" not in nodes.NODE_CLASS_MAPPINGS:
            raise UserError("ComfyUI did not load the pack; start ComfyUI and read its log.")
        nodes.NODE_CLASS_MAPPINGS[CHOOSE] = _choose_node(nodes.NODE_CLASS_MAPPINGS["OvisU1Loader"])

    def run(self, work: Record, seeds: Sequence[int]) -> Output:
        """Makes a record, with an image for each seed. If anything fails, the output has an `error`."""
        try:
            return self._run(work, seeds)
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            return Output(error=kind + " ".join(str(error).split()))

    def _run(self, work: Record, seeds: Sequence[int]) -> Output:
        names = [f"source_{i}" for i in range(len(work.images))]
        for name, data in zip(names, _checked(work.images), strict=True):
            (self._base / "input" / name).write_bytes(data)
        images: list[bytes] = []
        text: str | None = None
        probabilities: tuple[float, ...] = ()
        seconds = 0.0
        for seed in seeds:
            outputs, taken = self._comfyui.run(graph(work, self._model, names, seed, uuid.uuid4().hex))
            seconds += taken
            for saved in outputs.get(SAVE, {}).get("images", ()):
                file = self._base / "output" / saved["subfolder"] / saved["filename"]
                images.append(file.read_bytes())
                file.unlink()
            text = next(iter(outputs.get(ANSWER, {}).get("text", ())), None)
        if work.task == "choice":
            probabilities = tuple(json.loads(text))
            text = work.choices[probabilities.index(max(probabilities))]
        return Output((_grid(images),) if work.grid else tuple(images), text, probabilities, seconds)


def _choose_node(loader: type) -> type:
    """A node class that computes the probability of each choice, with the pack that ComfyUI loaded."""
    pack = loader.__module__.removesuffix(".nodes.load")
    choose = importlib.import_module(f"{pack}.ovis_core.native.understanding").choose

    class Choose:
        RETURN_TYPES, OUTPUT_NODE, FUNCTION, CATEGORY = (), True, "answer", "Ovis-U1"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            words = {name: ("STRING", {}) for name in ("prompt", "choices", "name")}
            return {"required": {"clip": ("CLIP",), "image": ("IMAGE",), **words}}

        def answer(self, clip: Any, image: Any, prompt: str, choices: str, name: str) -> dict[str, Any]:
            return {"ui": {"text": [json.dumps(choose(clip, image, prompt, json.loads(choices)))]}}

    return Choose


def _checked(files: Sequence[bytes]) -> list[bytes]:
    """Pictures for ComfyUI. Several are padded with white to one size, because a batch needs it.

    Raises UserError if one is damaged; ComfyUI would fill the missing part with grey.
    """
    try:
        pictures = [Image.open(io.BytesIO(file)) for file in files]
        for picture in pictures:
            picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image: expected an image file, got an unreadable one ({error}); replace it.") from error
    if len(pictures) < 2:
        return list(files)
    size = tuple(map(max, zip(*(picture.size for picture in pictures), strict=True)))
    made = []
    for picture in pictures:
        canvas = Image.new("RGB", size, "white")
        canvas.paste(picture.convert("RGB"), tuple((a - b) // 2 for a, b in zip(size, picture.size, strict=True)))
        made.append(_png(canvas))
    return made


def _grid(files: Sequence[bytes]) -> bytes:
    """A grid of images of one size, two per row."""
    pictures = [Image.open(io.BytesIO(file)) for file in files]
    width, height = pictures[0].size
    grid = Image.new("RGB", (2 * width, (len(pictures) + 1) // 2 * height))
    for i, picture in enumerate(pictures):
        grid.paste(picture, (i % 2 * width, i // 2 * height))
    return _png(grid)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)
    return file.getvalue()
