"""The part of demo.py that runs inside the environment. Start demo.py, not this."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

import workspace
from comfy_prompt import Result
from comfy_server import ComfyServer, usual_port
from console import Ticker, UserError, bar, guarded, show
from import_core import import_core
from make_checkpoint import write_release
from workflow_api import read_workflow, to_api
from workspace import ComfyUI

MODELS = Path("models") / "ovis_u1"
TINY = "tiny-random"
TINY_SIZE = 256
TINY_STEPS = 8


def main() -> int:
    """Command line; demo.py writes it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--where", required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--prompt")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)

    begun = time.monotonic()
    comfyui = workspace.describe_comfyui(args.comfyui, args.where)
    print(f"ComfyUI {comfyui.version}: {comfyui.where}")
    base = workspace.make_base(workspace.home() / "base", workspace.ROOT, comfyui.path)
    name = link_model(base, args.model) if args.model else make_tiny(base)
    port = args.port or (usual_port() if args.serve else None)
    device, device_args = find_device()
    if args.model and device == "cpu":
        print("No GPU is seen, so this runs on the CPU: right, but very slow.", _windows_hint(), sep="")

    server = ComfyServer(comfyui.path, base, args=device_args, port=port)
    try:
        with Ticker("starting ComfyUI"):
            server.start()
        workflow = make_workflow(name, args)
        result = run(server, workflow)
        image = save_image(server, result)
        report(comfyui, name, device, result, image, time.monotonic() - begun)
        if args.model is None:
            next_steps()
        if args.serve:
            serve(server, image, name, tiny=args.model is None)
    finally:
        server.stop()
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    # As with Ctrl+C, the server is stopped on the way out.
    raise KeyboardInterrupt


def make_tiny(base: Path) -> str:
    """Writes the small random model, unless it is there; its name."""
    file = workspace.ROOT / "tests" / "golden" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    folder = base / MODELS / TINY
    # The index is what is written last.
    if (folder / "model.safetensors.index.json").is_file():
        have = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if have == config:
            return TINY
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Ticker("making a small model of random weights"), tempfile.TemporaryDirectory(dir=base) as temporary:
        write_release(Path(temporary) / TINY, config)
        workspace.remove(folder)
        (Path(temporary) / TINY).rename(folder)
    return TINY


def link_model(base: Path, model: Path) -> str:
    """Links a release into the base directory, once it is found to be whole; its name."""
    import_core()
    from ovis_core.checkpoint import CheckpointError, open_release

    model = model.resolve()
    try:
        open_release(model)
    except CheckpointError as error:
        raise UserError(f"--model: {error}") from error
    try:
        workspace.link_folder(model, base / MODELS / model.name)
    except OSError as error:
        raise UserError(f"{model} could not be linked into {base / MODELS}: {error}") from error
    return model.name


def find_device() -> tuple[str, list[str]]:
    """What PyTorch will run on, and ComfyUI's arguments for it."""
    import torch

    if torch.cuda.is_available():
        return "cuda", []
    if torch.backends.mps.is_available():
        return "mps", []
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return "xpu", []
    return "cpu", ["--cpu"]


def _windows_hint() -> str:
    if platform.system() != "Windows":
        return ""
    return " On Windows install the pack in your own ComfyUI instead, whose PyTorch knows your GPU."


def make_workflow(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The workflow as the page has it, with this model and what the command line asks for."""
    workflow = read_workflow("text_to_image")

    def put(node_type: str, place: int, value: Any) -> None:
        for node in workflow["nodes"]:
            if node["type"] == node_type:
                node["widgets_values"][place] = value

    put("OvisU1Loader", 0, name)
    if args.model is None:
        put("PrimitiveInt", 0, TINY_SIZE)  # width and height
        put("OvisU1Sampler", 2, TINY_STEPS)
    if args.prompt is not None:
        put("OvisU1TextEncode", 0, args.prompt)
    if args.seed is not None:
        put("OvisU1Sampler", 0, args.seed)
    return workflow


def run(server: ComfyServer, workflow: dict[str, Any]) -> Result:
    """Runs the workflow with a progress bar; the image carries it, as it does from the page."""
    info = server.object_info()
    if "OvisU1Loader" not in info:
        raise UserError(f"ComfyUI did not load the pack; its log {server.log} says why")
    try:
        prompt = to_api(workflow, info)
    except ValueError as error:
        raise UserError(f"the workflow does not run here: {error}") from error
    begun = time.monotonic()
    show("running the workflow ...")

    def on_progress(value: int, maximum: int) -> None:
        seconds = time.monotonic() - begun
        show(f"{bar(value, maximum)}  step {value} of {maximum}, {seconds:.0f} s")

    try:
        result = server.run(prompt, on_progress=on_progress, timeout=None, workflow=workflow)
    except BaseException:
        show("running the workflow: not finished", last=True)
        raise
    show(f"{bar(1, 1)}  the workflow has run, {result.seconds:.1f} s", last=True)
    return result


def save_image(server: ComfyServer, result: Result) -> Path:
    """Writes the first image to output/ in the checkout, over nothing."""
    entries = [entry for output in result.outputs.values() for entry in output.get("images", [])]
    if not entries:
        raise UserError("the workflow ended without an image")
    data = server.image(entries[0])
    folder = workspace.ROOT / "output"
    folder.mkdir(exist_ok=True)
    for i in itertools.count(1):
        file = folder / ("ovis_u1_demo.png" if i == 1 else f"ovis_u1_demo_{i}.png")
        try:
            with file.open("xb") as sink:
                sink.write(data)
        except FileExistsError:
            continue
        return file
    raise AssertionError


def report(comfyui: ComfyUI, name: str, device: str, result: Result, image: Path, seconds: float) -> None:
    """Says what was done and where things are."""
    print()
    print(f"Image        {image}")
    print(f"ComfyUI      {comfyui.version} in {comfyui.path}")
    print(f"Environment  {sys.prefix}")
    print(f"Model        {name} on {device}")
    print(f"Time         {result.seconds:.1f} s for the workflow, {seconds:.1f} s in all")
    print(f"Cache        {workspace.home()} (deleting it removes everything but the image)")


def next_steps() -> None:
    """Says how to come from the random model to the real one."""
    script = workspace.ROOT / "scripts"
    folder = workspace.home() / "Ovis-U1-3B"
    print()
    print("The small model's weights are random, so its image is noise: it shows that the nodes run.")
    print("For real images (7 GB):")
    print()
    print(f"    {sys.executable} {script / 'download.py'} {folder}")
    print(f"    python {script / 'demo.py'} --model {folder} --serve")


def serve(server: ComfyServer, image: Path, name: str, tiny: bool) -> None:
    """Waits while the user works with ComfyUI's page."""
    print()
    print(f"ComfyUI is at {server.url}. Drop {image.name} onto its page: the image brings this graph along.")
    size = f", and {TINY_SIZE} for width and height" if tiny else ""
    print(f"For others open the page's template browser under ovis-u1, and choose {name} in Ovis-U1 Load Model{size}.")
    print("Ctrl+C stops it.", flush=True)
    try:
        while server.alive():
            time.sleep(0.3)
    except KeyboardInterrupt:
        print("\nStopping ComfyUI.")
        return
    told = workspace.tail(server.log)
    raise UserError(f"ComfyUI has stopped by itself. Its log {server.log} ends with:\n{told}")


if __name__ == "__main__":
    sys.exit(guarded(main))
