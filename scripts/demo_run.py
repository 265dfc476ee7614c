"""The part of demo.py that runs inside the environment. Start demo.py, not this."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import workspace
from comfy_server import ComfyServer, usual_port
from console import Ticker, UserError, guarded
from demo_strip import strip
from import_core import import_core
from make_checkpoint import write_release
from run_options import find_device, model_errors
from workflow_runner import images_of, put, run, text_of, widget, workflow_of
from workspace import PACK, ComfyUI

MODELS = Path("models") / "ovis_u1"
TINY = "tiny-random"
RANDOM = (
    "This copy of the pack lacks its small model, so one of random weights runs: the images are noise and the answer "
    "is nonsense. This only shows that the nodes run."
)


@dataclass(frozen=True)
class Demo:
    """Prompts and settings of the demo for one model; None keeps the workflow's value.

    name    in Ovis-U1 Load Model
    side    width and height in pixels
    tokens  maximum number of tokens of the answer
    real    whether the user named these weights
    """

    name: str
    prompt: str | None = None
    edit: str | None = None
    question: str | None = None
    side: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seed: int | None = None
    real: bool = False


@dataclass
class Made:
    """The files and texts that were made, and ComfyUI's time in seconds."""

    image: Path
    edited: Path
    strip: Path
    answer: str
    seconds: float


def main() -> int:
    """Command line; demo.py calls it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--where", required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", type=int)
    parser.add_argument("--prompt")
    parser.add_argument("--edit")
    parser.add_argument("--question")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)

    begun = time.monotonic()
    comfyui = workspace.describe_comfyui(args.comfyui, args.where)
    print(f"ComfyUI {comfyui.version}: {comfyui.where}")
    base = workspace.make_base(workspace.home() / "base", workspace.ROOT, comfyui.path)
    demo = choose(base, args.model)
    given = {name: getattr(args, name) for name in ("prompt", "edit", "question", "seed")}
    demo = replace(demo, **{name: value for name, value in given.items() if value is not None})
    port = args.port or (usual_port() if args.serve else None)
    device, device_args = find_device()
    if demo.real and device == "cpu":
        print("No GPU was found, so this runs on the CPU, which is very slow.", _windows_hint(), sep="")
    elif device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # more threads mostly wait for each other in so small a model

    server = ComfyServer(comfyui.path, base, args=device_args, port=port)
    try:
        with Ticker("starting ComfyUI"):
            server.start()
        made = make(server, demo, workspace.ROOT / "output")
        report(comfyui, demo, device, made, time.monotonic() - begun)
        if not demo.real:
            next_steps(demo, f" --comfyui {comfyui.path}" if comfyui.where == workspace.GIVEN else "")
        if args.serve:
            serve(server, made.image, demo)
    finally:
        server.stop()
    return 0


def choose(base: Path, model: Path | None) -> Demo:
    """The user's weights; without them the built-in model, or one of random weights if its file is not there."""
    if model is not None:
        return Demo(link_model(base, model), real=True)
    import_core()
    from ovis_core.weights import built_in

    words = Demo(
        built_in.NAME,
        prompt="a blue triangle on a yellow background",
        edit="make the triangle red",
        question="What color is the triangle?",
        side=built_in.SIDE,
        steps=built_in.STEPS,
        tokens=32,
        seed=3,
    )
    if built_in.is_there():
        return words
    print(RANDOM)
    return replace(words, name=make_tiny(base), side=256, steps=8)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # As with Ctrl+C, the server is stopped on the way out.
    raise KeyboardInterrupt


def make_tiny(base: Path) -> str:
    """Writes the small random model if it is missing; returns its name."""
    file = workspace.ROOT / "tests" / "golden" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    folder = base / MODELS / TINY
    # The index is written last.
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
    """Checks a release and links it into the base directory; returns its name."""
    model = model.resolve()
    with model_errors():
        from ovis_core.weights.checkpoint import open_model

        open_model(model)
    try:
        workspace.link_folder(model, base / MODELS / model.name)
    except OSError as error:
        raise UserError(
            f"--model: {model} cannot be linked into {base / MODELS} ({error}); copy it into that folder."
        ) from error
    return model.name


def _windows_hint() -> str:
    if platform.system() != "Windows":
        return ""
    return " On Windows install the pack in your own ComfyUI instead, whose PyTorch knows your GPU."


def make(server: ComfyServer, demo: Demo, folder: Path) -> Made:
    """Makes an image, edits it, and asks about the result; writes files to `folder` without replacing any."""
    info = server.object_info()
    if "OvisU1Loader" not in info:
        raise UserError(f"ComfyUI did not load the pack; read its log {server.log}.")
    image, edited, strip_file = new_files(folder, "ovis_u1_demo", "ovis_u1_demo_edit", "ovis_u1_demo_strip")

    chosen = {"model": demo.name, "seed": demo.seed, "steps": demo.steps}
    making = workflow_of("text_to_image", info, **chosen)
    put(making, info, "PrimitiveInt", value=demo.side)  # width and height
    put(making, info, "OvisU1TextEncode", prompt=demo.prompt)
    first = run(server, info, making, "making an image")
    image.write_bytes(images_of(server, first)[0])

    editing = workflow_of("edit", info, **chosen)
    put(editing, info, "LoadImage", image=server.upload(image))
    put(editing, info, "OvisU1EditEncode", prompt=demo.edit)
    second = run(server, info, editing, "editing")
    edited.write_bytes(images_of(server, second)[0])

    asking = workflow_of("understand", info, **chosen)
    put(asking, info, "LoadImage", image=server.upload(edited))
    put(asking, info, "OvisU1Understand", prompt=demo.question, max_new_tokens=demo.tokens)
    third = run(server, info, asking, "asking")
    answer = text_of(server, third)

    nodes = (making, "OvisU1TextEncode"), (editing, "OvisU1EditEncode"), (asking, "OvisU1Understand")
    prompts = [widget(workflow, info, node, "prompt") for workflow, node in nodes]
    strip(image, edited, *prompts, answer).save(strip_file)
    return Made(image, edited, strip_file, answer, first.seconds + second.seconds + third.seconds)


def new_files(folder: Path, *names: str) -> list[Path]:
    """PNG paths with the same number after their names; none of them exists yet."""
    folder.mkdir(exist_ok=True)
    for i in itertools.count(1):
        files = [folder / (f"{name}.png" if i == 1 else f"{name}_{i}.png") for name in names]
        if not any(file.exists() for file in files):
            return files
    raise AssertionError


def report(comfyui: ComfyUI, demo: Demo, device: str, made: Made, seconds: float) -> None:
    """Prints the results and their paths."""
    print()
    print(f"Answer       {made.answer}")
    print(f"Overview     {made.strip}")
    print(f"Images       {made.image}, {made.edited.name}")
    print(f"ComfyUI      {comfyui.version} in {comfyui.path}")
    print(f"Environment  {sys.prefix}")
    print(f"Model        {demo.name} on {device}")
    print(f"Time         {made.seconds:.1f} s for the three workflows, {seconds:.1f} s in all")
    print(f"Cache        {workspace.home()} (deleting it removes everything but the images)")


def next_steps(demo: Demo, options: str) -> None:
    """Prints how to use the real model, with the user's options."""
    script = workspace.ROOT / "scripts"
    folder = workspace.home() / "Ovis-U1-3B"
    print()
    if demo.name == TINY:
        print("The model's weights are random, so its images are noise.")
    else:
        from ovis_core.weights import built_in

        print(f"The small model draws {built_in.DRAWS}, and nothing else.")
    print("For the real model (7 GB):")
    print()
    print(f"    {sys.executable} {script / 'download.py'} {folder}")
    print(f"    python {script / 'demo.py'} --model {folder}{options} --serve")


def serve(server: ComfyServer, image: Path, demo: Demo) -> None:
    """Keeps ComfyUI running for the user until Ctrl+C."""
    print()
    print(f"ComfyUI is at {server.url}. Drop {image.name} onto its page: the image contains its workflow.")
    size = f", and {demo.side} for width and height" if demo.side else ""
    print(f"For other workflows open the page's template browser under {PACK}, and choose")
    print(f"{demo.name} in Ovis-U1 Load Model{size}.")
    print(f"Its folders input, output and models, and its log server.log, are in {server.base}.")
    print("Ctrl+C stops it.", flush=True)
    try:
        while server.alive():
            time.sleep(0.3)
    except KeyboardInterrupt:
        print("\nStopping ComfyUI.")
        return
    end = workspace.tail(server.log)
    raise UserError(f"ComfyUI stopped unexpectedly; read its log {server.log}, which ends with:\n{end}")


if __name__ == "__main__":
    sys.exit(guarded(main))
