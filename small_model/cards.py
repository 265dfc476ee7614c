"""Makes the pictures of the template browser, `workflows/*.jpg`, by running each workflow on the small model.

    python small_model/cards.py --comfyui PATH

with the Python of that ComfyUI. Workflows for which the small model knows too little keep the pictures that they have.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "scripts")]
sys.path.append(str(HERE))

import av
import flat_shapes
import torch
from flat_shapes import Scene, Shape
from new_colour import PROMPT, write_pictures
from PIL import Image, ImageDraw

import workflow_runner
import workspace
from comfy_server import ComfyServer
from demo_strip import INK, PAGE, SOFT, font
from import_core import import_core
from run_options import add_comfyui_option
from workflow_api import TITLES, WORKFLOWS
from workflow_runner import nodes_of

SIDE, GAP = 640, 24
STEPS, SEED = 20, 1
SOURCE = Scene("white", (Shape("square", "blue", "", "", 64, 64, 30),))
Tile = tuple[Image.Image, str]


class Runner:
    """A running ComfyUI with the pack and the small model."""

    def __init__(self, server: ComfyServer, folder: Path, model: str) -> None:
        self.server, self.folder, self.model = server, folder, model
        self.info = server.object_info()

    def load(self, name: str) -> dict[str, Any]:
        """One of the workflows, set to the small model."""
        workflow = workflow_runner.workflow_of(name, self.info, self.model, SEED, STEPS)
        self.put(workflow, "PrimitiveInt", value=flat_shapes.SIDE)
        self.put(workflow, "OvisU1Understand", max_new_tokens=24)
        return workflow

    def put(self, workflow: dict[str, Any], node_type: str, **values: Any) -> None:
        """Sets widgets of every node of a type, by name."""
        workflow_runner.put(workflow, self.info, node_type, **values)

    def put_each(self, workflow: dict[str, Any], node_type: str, name: str, values: Sequence[Any]) -> None:
        """Sets one widget of the nodes of a type, a value for each node."""
        for node, value in zip(nodes_of(workflow, node_type), values, strict=True):
            workflow_runner.put_in(node, self.info, **{name: value})

    def folder_of(self, workflow: dict[str, Any], node_type: str) -> Path:
        """The folder among ComfyUI's inputs that a node reads."""
        return self.server.base / "input" / workflow_runner.widget(workflow, self.info, node_type, "folder")

    def upload(self, workflow: dict[str, Any], image: Image.Image) -> None:
        """Takes an image as the source."""
        self.put(workflow, "LoadImage", image=self.uploaded(image, "source.png"))

    def uploaded(self, image: Image.Image, name: str) -> str:
        """Its name among ComfyUI's inputs."""
        image.save(self.folder / name)
        return self.server.upload(self.folder / name)

    def run(self, workflow: dict[str, Any]) -> Any:
        """The result of a workflow."""
        return workflow_runner.run(self.server, self.info, workflow, "running")

    def image(self, result: Any) -> Image.Image:
        """The image that it saved."""
        return _opened(workflow_runner.images_of(self.server, result)[0])

    def text(self, result: Any) -> str:
        """The text that it showed."""
        return workflow_runner.text_of(self.server, result)

    def shown(self, result: Any) -> list[Image.Image]:
        """The images that it previewed."""
        return list(map(_opened, workflow_runner.images_of(self.server, result, "temp")))


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def drawn(scene: Scene, mask: torch.Tensor | None = None) -> Image.Image:
    """A scene's picture; a mask (128, 128) becomes transparent."""
    return flat_shapes.to_image(flat_shapes.draw([scene])[0], mask)


def text_to_image(run: Runner) -> list[Tile]:
    """A prompt and its picture."""
    prompt = "a blue triangle on a yellow background"
    workflow = run.load("text_to_image")
    run.put(workflow, "OvisU1TextEncode", prompt=prompt)
    return [(run.image(run.run(workflow)), prompt)]


def edit(run: Runner) -> list[Tile]:
    """A source and its edit."""
    workflow = run.load("edit")
    run.upload(workflow, drawn(SOURCE))
    run.put(workflow, "OvisU1EditEncode", prompt="make the square red")
    return [(drawn(SOURCE), ""), (run.image(run.run(workflow)), "make the square red")]


def edit_masked(run: Runner) -> list[Tile]:
    """A source with a mask, and its edit."""
    mask = torch.zeros(flat_shapes.SIDE, flat_shapes.SIDE, dtype=torch.bool)
    mask[26:102, 26:102] = True
    workflow = run.load("edit_masked")
    run.upload(workflow, drawn(SOURCE, mask))
    run.put(workflow, "OvisU1EditEncode", prompt="make it purple")
    source = drawn(SOURCE)
    ImageDraw.Draw(source).rectangle((26, 26, 102, 102), outline=(120, 120, 114))
    return [(source, "the mask"), (run.image(run.run(workflow)), "make it purple")]


def edit_chain(run: Runner) -> list[Tile]:
    """A source and two edits, one after the other."""
    words = ["make the square green", "change the background to yellow"]
    workflow = run.load("edit_chain")
    run.upload(workflow, drawn(SOURCE))
    run.put_each(workflow, "OvisU1EditEncode", "prompt", words)
    result = run.run(workflow)
    return [(drawn(SOURCE), ""), (run.shown(result)[-1], words[0]), (run.image(result), words[1])]


def edit_two(run: Runner) -> list[Tile]:
    """The two pictures that go in, without a result: the small model was trained on edits of one picture."""
    images = [drawn(SOURCE), drawn(Scene("yellow", (Shape("circle", "red", "", "", 64, 64, 30),)))]
    return [(image, f"Image {number}") for number, image in enumerate(images, 1)]


def understand(run: Runner) -> list[Tile]:
    """A picture with a question and its answer."""
    workflow = run.load("understand")
    run.upload(workflow, drawn(SOURCE))
    run.put(workflow, "OvisU1Understand", prompt="Describe this image.")
    return [(drawn(SOURCE), f"Describe this image. - {run.text(run.run(workflow))}")]


def chat(run: Runner) -> list[Tile]:
    """Two questions about a picture."""
    pair = Scene(
        "black",
        (
            Shape("circle", "yellow", "small", "on the left", 33, 60, 22),
            Shape("square", "red", "small", "", 95, 70, 22),
        ),
    )
    questions = ["Which shape is on the left?", "What color is it?"]
    workflow = run.load("chat")
    run.upload(workflow, drawn(pair))
    run.put_each(workflow, "OvisU1Understand", "prompt", questions)
    outputs = run.run(workflow).outputs
    nodes = [str(node["id"]) for node in nodes_of(workflow, "PreviewAny")]
    answers = [str(outputs[node]["text"][0]).strip() for node in nodes]
    said = "  ".join(f"{question} - {answer}" for question, answer in zip(questions, answers, strict=True))
    return [(drawn(pair), said)]


def describe_and_redraw(run: Runner) -> list[Tile]:
    """A picture, and the image that the model makes from its description."""
    workflow = run.load("describe_and_redraw")
    run.upload(workflow, drawn(SOURCE))
    run.put(workflow, "OvisU1Understand", prompt="Describe this image.")
    result = run.run(workflow)
    return [(drawn(SOURCE), "described:"), (run.image(result), run.text(result))]


def enrich_prompt(run: Runner) -> list[Tile]:
    """A few words, and the image that the model makes from the longer prompt."""
    idea = "something blue"  # of most ideas the small model makes a blue square
    workflow = run.load("enrich_prompt")
    run.put(workflow, "PrimitiveStringMultiline", value=idea)
    result = run.run(workflow)
    return [(run.image(result), f"{idea}: {run.text(result)}")]


def pick_the_best(run: Runner) -> list[Tile]:
    """Four pictures and the one that was chosen."""
    prompt = "a small orange triangle on a blue background"
    workflow = run.load("pick_the_best")
    run.put(workflow, "PrimitiveStringMultiline", value=prompt)
    result = run.run(workflow)
    return [*((image, "") for image in run.shown(result)[:4]), (run.image(result), f"the best: {prompt}")]


def improve(run: Runner) -> list[Tile]:
    """An image of another prompt, and the loop's result. Images of the right prompt need no edit."""
    first = "a red circle on a white background"
    workflow = run.load("improve")
    (encode,) = nodes_of(workflow, "OvisU1TextEncode")
    for entry in encode["inputs"]:
        if entry["name"] == "prompt":
            entry["link"] = None
    run.put(workflow, "OvisU1TextEncode", prompt=first)
    run.put(workflow, "PrimitiveStringMultiline", value=first.replace("red", "blue"))
    run.put(workflow, "OvisU1Improve", steps=STEPS, question="What shape is it?", instruction="make the {answer} blue")
    result = run.run(workflow)
    (loop,) = (str(node["id"]) for node in nodes_of(workflow, "OvisU1Improve"))
    ((log,),) = result.outputs[loop]["ovis_u1_text"]
    score, instruction, better, *_ = log.splitlines()
    before, after = (float(re.search(r"\d\.\d+", line)[0]) for line in (score, better))
    change = instruction.partition(": ")[2]
    return [
        (run.shown(result)[0], f"wanted: a blue circle; score {before:.2f}"),
        (run.image(result), f"{change}; score {after:.2f}"),
    ]


def multi_image(run: Runner) -> list[Tile]:
    """Two pictures and a question about one of them."""
    question = "What color is the circle?"
    images = [drawn(SOURCE), drawn(Scene("yellow", (Shape("circle", "red", "", "", 64, 64, 30),)))]
    workflow = run.load("multi_image")
    names = [run.uploaded(image, f"{number}.png") for number, image in enumerate(images)]
    run.put_each(workflow, "LoadImage", "image", names)
    run.put(workflow, "OvisU1Understand", prompt=question)
    answer = run.text(run.run(workflow))
    return [(images[0], question), (images[1], answer)]


def video(run: Runner) -> list[Tile]:
    """Frames in which a circle moves, and the model's answer."""
    frames = [drawn(Scene("white", (Shape("circle", "red", "small", "", x, 64, 24),))) for x in (30.0, 64.0, 98.0)]
    with av.open(str(run.folder / "moving.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = flat_shapes.SIDE, flat_shapes.SIDE, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))
    workflow = run.load("video")
    run.put(workflow, "LoadVideo", file=run.server.upload(run.folder / "moving.mkv"))
    answer = run.text(run.run(workflow))
    return [(frames[0], "Describe the video."), (frames[1], answer), (frames[2], "")]


def caption_folder(run: Runner) -> list[Tile]:
    """Three pictures of a folder with their captions."""
    workflow = run.load("caption_folder")
    pictures = run.folder_of(workflow, "LoadImageDataSetFromFolder")
    pictures.mkdir()
    for seed in range(3):
        drawn(flat_shapes.make_scene(Random(seed), False)).save(pictures / f"{seed}.png")
    result = run.run(workflow)
    (captions,) = (output["text"] for output in result.outputs.values() if "text" in output)
    return list(zip(run.shown(result), captions, strict=True))


def train_lora(run: Runner) -> list[Tile]:
    """Four of the images that the LoRA is trained on, and an image made with it."""
    workflow = run.load("train_lora")
    pictures = run.folder_of(workflow, "LoadImageTextDataSetFromFolder")
    write_pictures(pictures)
    for node_type in ("CenterCropImages", "EmptyLatentImage", "OvisU1TextEncode"):
        run.put(workflow, node_type, width=flat_shapes.SIDE, height=flat_shapes.SIDE)
    run.put(workflow, "TrainLoraNode", steps=120, learning_rate=0.006, seed=1, training_dtype="fp32")
    run.put(workflow, "OvisU1TextEncode", prompt=PROMPT)
    image = run.image(run.run(workflow))
    return [*((Image.open(pictures / f"{i}.png").convert("RGB"), "") for i in range(4)), (image, f"learned: {PROMPT}")]


CARDS: dict[str, Callable[[Runner], list[Tile]]] = {
    function.__name__: function
    for function in (
        text_to_image,
        edit,
        edit_masked,
        edit_chain,
        edit_two,
        understand,
        multi_image,
        video,
        chat,
        describe_and_redraw,
        enrich_prompt,
        pick_the_best,
        caption_folder,
        improve,
        train_lora,
    )
}


def card(tiles: list[Tile]) -> Image.Image:
    """One or two rows of pictures with words under them."""
    page = Image.new("RGB", (SIDE, SIDE), PAGE)
    pen = ImageDraw.Draw(page)
    if len(tiles) == 5:  # four small ones and a large one
        small = (SIDE - 5 * GAP) // 4
        for i, (image, _) in enumerate(tiles[:4]):
            page.paste(image.resize((small, small), Image.Resampling.LANCZOS), (GAP + i * (small + GAP), GAP))
        _tile(page, pen, tiles[4], (SIDE - 330) // 2, small + 2 * GAP, 330)
        return page
    columns = min(len(tiles), 3)
    side = min(440, (SIDE - (columns + 1) * GAP) // columns)
    x = (SIDE - columns * side - (columns - 1) * GAP) // 2
    y = GAP * 2 if columns == 1 else (SIDE - side - 90) // 2
    for i, tile in enumerate(tiles):
        _tile(page, pen, tile, x + i * (side + GAP), y, side)
    return page


def _tile(page: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, x: int, y: int, side: int) -> None:
    image, words = tile
    page.paste(image.resize((side, side), Image.Resampling.LANCZOS), (x, y))
    pen.rectangle((x, y, x + side - 1, y + side - 1), outline=SOFT)
    size = 24 if side > 250 else 20
    lines = textwrap.wrap(words, max(10, int(side / size * 1.9)))
    pen.multiline_text((x, y + side + 10), "\n".join(lines), fill=INK, font=font(size), spacing=6)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_comfyui_option(parser)
    parser.add_argument("--only", choices=CARDS, nargs="+", default=list(CARDS), help="only these workflows")
    parser.add_argument("--out", type=Path, default=WORKFLOWS, help="folder for the images")
    args = parser.parse_args()
    import_core()
    from ovis_core.weights import built_in

    with tempfile.TemporaryDirectory() as folder:
        base = workspace.make_base(Path(folder) / "base", workspace.ROOT, args.comfyui)
        with ComfyServer(args.comfyui, base, ["--cpu"]) as server:
            run = Runner(server, Path(folder), built_in.NAME)
            for name in args.only:
                file = args.out / f"{TITLES[name]}.jpg"
                tiles = CARDS[name](run)
                card(tiles).save(file, quality=88)
                print(file.name, [words for _, words in tiles])
    return 0


if __name__ == "__main__":
    sys.exit(main())
