"""The table of features: its rows, and the helpers that run them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from comfy_prompt import Result
from comfy_server import ComfyServer
from helpers.graphs import Graph, saved_latent

WIDTH, HEIGHT, STEPS = 96, 64, 3
PROMPT, OTHER = "a red fox in the snow", "a blue boat on a lake"


@dataclass
class Row:
    """One feature of ComfyUI and how it is checked."""

    area: str
    feature: str
    what: str
    run: Callable[[Lab], str | None]  # the outcome if it is not "works"

    @property
    def name(self) -> str:
        """The test's name."""
        return f"{self.area}: {self.feature}"


ROWS: list[Row] = []


def row(area: str, feature: str, what: str) -> Callable[[Callable[[Lab], str | None]], Callable[[Lab], str | None]]:
    """Registers a function as a row; `what` says what it checks."""

    def register(run: Callable[[Lab], str | None]) -> Callable[[Lab], str | None]:
        ROWS.append(Row(area, feature, what, run))
        return run

    return register


class Unavailable(Exception):
    """This ComfyUI has no such node."""


@dataclass
class Lab:
    """A running server and the plain results that features are compared with."""

    server: ComfyServer
    info: dict[str, Any]
    release: Path
    cache: dict[str, Any] = field(default_factory=dict)

    def bench(self, **latent: Any) -> Bench:
        """A graph with the model, a prompt and an empty latent."""
        return Bench(self, **latent)

    def noise_picture(self, width: int, height: int) -> str:
        """A picture of noise in the server's input folder, for LoadImage."""
        name = f"noise_{width}x{height}.png"
        values = torch.randint(0, 256, (height, width, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
        Image.fromarray(values.numpy()).save(self.server.base / "input" / name)
        return name

    def noise(self) -> Tensor:
        """The bench's initial noise, which a sampler with no steps returns."""
        if "noise" not in self.cache:
            bench = self.bench()
            links = {"noise": bench.node("RandomNoise", noise_seed=7), "latent_image": bench.latent}
            sigmas = bench.node("SplitSigmas", 0, sigmas=bench.sigmas(), step=1)
            self.cache["noise"] = bench.sampled(
                bench.node(
                    "AddNoise",
                    model=bench.model,
                    sigmas=sigmas,
                    **{"noise": links["noise"], "latent_image": links["latent_image"]},
                )
            )
        return self.cache["noise"]

    def plain(self) -> Tensor:
        """The latent of the unchanged bench."""
        if "plain" not in self.cache:
            self.cache["plain"] = self.bench().sampled()
        return self.cache["plain"]


class Bench(Graph):
    """A graph that is built node by node, all links by name."""

    def __init__(self, lab: Lab, width: int = WIDTH, height: int = HEIGHT, batch_size: int = 1) -> None:
        super().__init__({"0": {"class_type": "OvisU1Loader", "inputs": {"model_name": "tiny"}}})
        self.prompt["0"]["inputs"]["weight_dtype"] = "default"
        self.lab = lab
        self.model, self.clip, self.vae = (["0", slot] for slot in range(3))
        self.positive, self.negative = self.encode(PROMPT, width, height)
        size = {"width": width, "height": height, "batch_size": batch_size}
        self.latent = self.node("EmptyLatentImage", **size)

    def node(self, class_type: str, slot: int = 0, **inputs: Any) -> list[Any]:
        """Adds a node, with defaults for missing inputs; returns a link from one of its outputs."""
        if class_type not in self.lab.info:
            raise Unavailable(class_type)
        spec = self.lab.info[class_type]["input"]
        for name, entry in spec.get("required", {}).items():
            options = entry[1] if len(entry) > 1 else {}
            if name not in inputs and "default" in options:
                inputs[name] = options["default"]
            elif name not in inputs and isinstance(entry[0], list) and entry[0]:
                inputs[name] = entry[0][0]
            elif name not in inputs and entry[0] == "COMBO":
                inputs[name] = options["options"][0]
        return [self.add(class_type, **inputs), slot]

    def options(self, class_type: str, name: str) -> list[str]:
        """The choices of one of a node's inputs."""
        spec = self.lab.info[class_type]["input"]
        entry = {**spec.get("required", {}), **spec.get("optional", {})}[name]
        return entry[1]["options"] if entry[0] == "COMBO" else entry[0]

    def encode(self, prompt: str, width: int = WIDTH, height: int = HEIGHT) -> tuple[list[Any], list[Any]]:
        """Positive and negative conditioning."""
        node, _ = self.node("OvisU1TextEncode", clip=self.clip, prompt=prompt, width=width, height=height)
        return [node, 0], [node, 1]

    def refined(self, conditioning: list[Any]) -> list[Any]:
        """Conditioning after the refiner."""
        return self.node("OvisU1Refine", model=self.model, conditioning=conditioning)

    def edited(self, **further: list[Any]) -> list[list[Any]]:
        """Positive, image_only, negative and latent of an edit of the bench's size; `further` images by their names."""
        image = self.node("LoadImage", image=self.lab.noise_picture(WIDTH, HEIGHT))
        given = {"clip": self.clip, "vae": self.vae, "image": image, "prompt": "make it red", "negative_prompt": OTHER}
        more = {f"images.{name}": link for name, link in further.items()}
        node, _ = self.node("OvisU1EditEncode", **given, megapixels=0.0, **more)
        return [[node, slot] for slot in range(4)]

    def edit_sampler(self, edited: list[list[Any]], txt_cfg: float, img_cfg: float, **inputs: Any) -> list[Any]:
        """The two-scale edit of `edited`."""
        positive, image_only, negative, latent = edited
        given = {"model": self.model, "seed": 7, "steps": STEPS, "sampler_name": "euler", "scheduler": "simple"}
        links = {"positive": positive, "image_only": image_only, "negative": negative, "latent": latent}
        scales = {"txt_cfg": txt_cfg, "img_cfg": img_cfg, "denoise": 1.0}
        return self.node("OvisU1Sampler", **{**given, **links, **scales, **inputs})

    def ksampler(self, **inputs: Any) -> list[Any]:
        """Core's KSampler on the bench's links."""
        given = {"seed": 7, "steps": STEPS, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        links = {"model": self.model, "positive": self.positive, "negative": self.negative}
        return self.node("KSampler", **{**given, **links, "latent_image": self.latent, **inputs})

    def custom(self, guider: list[Any], sigmas: list[Any] | None = None, **inputs: Any) -> list[Any]:
        """SamplerCustomAdvanced with a guider, as the KSampler of this bench."""
        links = {
            "noise": self.node("RandomNoise", noise_seed=7),
            "guider": guider,
            "sampler": self.node("KSamplerSelect", sampler_name="euler"),
            "sigmas": sigmas or self.sigmas(),
            "latent_image": self.latent,
        }
        return self.node("SamplerCustomAdvanced", **{**links, **inputs})

    def sigmas(self) -> list[Any]:
        """The KSampler's sigmas."""
        return self.node("BasicScheduler", model=self.model, scheduler="simple", steps=STEPS, denoise=1.0)

    def sampled(self, *links: list[Any]) -> Any:
        """Runs the graph; returns the latents of these links, or of the KSampler without links."""
        found = self.run(*(links or (self.ksampler(),)))
        return found[0] if len(links) < 2 else found

    def run(self, *links: list[Any]) -> list[Tensor]:
        """Runs the graph; returns the latents of these links."""
        saves = [self.save_latent(link, "features") for link in links]
        result = self.execute()
        return [saved_latent(self.lab.server, result, save) for save in saves]

    def execute(self) -> Result:
        """Runs the graph."""
        result = self.lab.server.run(self.prompt)
        assert not result.node_errors, result.node_errors
        return result


def apart(a: Tensor, b: Tensor) -> float:
    """How far two latents are from each other, relative to the second."""
    assert a.shape == b.shape
    assert a.isfinite().all()
    assert b.isfinite().all()
    return float((a.double() - b.double()).norm() / b.double().norm())


def same(a: Tensor, b: Tensor, limit: float = 2e-5) -> None:
    """The same to rounding."""
    assert apart(a, b) <= limit, apart(a, b)


def other(a: Tensor, b: Tensor, least: float = 1e-3) -> None:
    """Different by more than rounding, and finite."""
    assert apart(a, b) >= least, apart(a, b)


def markdown(done: dict[str, str]) -> Iterator[str]:
    """The table, with the outcome of each row by its name."""
    yield "| area | feature | result | outcome |"
    yield "|---|---|---|---|"
    for entry in ROWS:
        if entry.name in done:
            yield f"| {entry.area} | {entry.feature} | {entry.what} | {done[entry.name]} |"
