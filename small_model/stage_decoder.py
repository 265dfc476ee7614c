"""Trains the decoder on latents and conditions of many scenes, which are computed once.

Scenes come in families of four: a scene, and the same with another colour, shape or background. Each is a target of
text to image, and the first and each other are an edit of one another.

From the loss of the velocity alone the decoder learns slowly which word belongs to which pixel. So there are two more
losses: the refiner's vector must predict every attribute of the scene, and the image tokens after half of the blocks
must predict the content of their pixels.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import flat_shapes
import phrasings
import stage_language
import stage_vae
import torch
from networks import Conditioner, after_picture, core, make_decoder, prompts
from safetensors.torch import load_file, save_file
from stage_language import ATTRIBUTES, attributes
from stage_vision import COLOURS, KINDS, REGIONS, UNKNOWN, attribute_loss
from torch import Tensor, nn
from torch.nn import functional as F
from training import Muon, Run, average, cosine, descend, load_module, set_rate

FAMILIES = 1200
PART = 50  # families in one file
CAPTIONS = 3  # of each scene
STEPS = 7600
BATCH = 16
RATE = 2.5e-3
SHORT = (24, 32, 48)  # tokens of a condition, of which most say nothing
FULL_SHARE = 0.9  # of the steps with short conditions
DROPPED = 0.1  # share without the text, for guidance
GUIDES = 0.05  # weight of the losses beside the velocity's
SIDE, STEP = 8, flat_shapes.SIDE // 8  # image tokens a side of a picture, and pixels a side of one
SHIFT = core.schedule.shift_for(64)
KINDS_OF_EDITS = tuple(phrasings.EDITS)


# ---- data


def families(part: int) -> list[list[flat_shapes.Scene]]:
    """The families of one file: a scene with three changes of it that training may show.

    They do not depend on the phrasings, so that latents stay when words change.
    """
    made: list[list[flat_shapes.Scene]] = []
    for number in itertools.count():
        scene = flat_shapes.make_scene(random.Random(f"family {part} {number}"), False)
        changed = [
            phrasings.edit(scene, kind, random.Random(f"family {part} {number} {kind}"))[1] for kind in KINDS_OF_EDITS
        ]
        if not any(flat_shapes.is_held_out(other) for other in changed):
            made.append([scene, *changed])
        if len(made) == PART:
            return made
    raise AssertionError


def edits(scenes: list[flat_shapes.Scene], rng: random.Random) -> list[tuple[int, int, str]]:
    """(from, to, instruction) between a family's first scene and each other, both ways; two phrasings of the former."""
    made = []
    for i, kind in enumerate(KINDS_OF_EDITS, 1):
        for a, b in ((0, i), (0, i), (i, 0)):
            made.append((a, b, phrasings.instruction(scenes[a], scenes[b], kind, rng)))
    return made


@torch.no_grad()
def write_latents(folder: Path, worker: int = 0, workers: int = 1) -> None:
    """Latents of every family, by the trained VAE; in files, of which those that are there are kept."""
    vae = stage_vae.load(folder)

    def make(part: int) -> dict[str, Tensor]:
        return {
            "latents": torch.cat([stage_vae.to_latents(vae, flat_shapes.draw(scenes)) for scenes in families(part)])
        }

    _write_parts(folder, "latents", make, worker, workers)


@torch.no_grad()
def write_conditions(folder: Path, worker: int = 0, workers: int = 1) -> None:
    """Conditions of every family, by the trained language model; in files as the latents."""
    conditioner = Conditioner(stage_language.load(folder))
    _, blank = blank_prefix(conditioner)
    _write_parts(folder, "conditions", lambda part: _conditions(part, conditioner, blank), worker, workers)


def _write_parts(folder: Path, name: str, make: Callable[..., dict[str, Tensor]], worker: int, workers: int) -> None:
    for part in range(worker, FAMILIES // PART, workers):
        file = folder / "data" / f"{name}-{part:04}.safetensors"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({key: value.contiguous() for key, value in make(part).items()}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
            print(f"{name}: part {part + 1} of {FAMILIES // PART}", flush=True)


def blank_prefix(conditioner: Conditioner) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Condition (261, 2 * hidden) and keys and values of the blank picture of text to image."""
    prefix, kept = conditioner.picture(torch.ones(1, 3, flat_shapes.SIDE, flat_shapes.SIDE))
    return prefix[0], kept


def _conditions(part: int, conditioner: Conditioner, blank: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    rng = random.Random(f"words {part}")
    prefixes, captions, instructions, plain, links = [], [], [], [], []
    for begin, scenes in enumerate(families(part)):
        texts = [phrasings.caption(scene, rng) for scene in scenes for _ in range(CAPTIONS)]
        rows = [after_picture(prompts.text_to_image(text)) for text in texts]
        captions += conditioner.text(rows, blank, [0] * len(rows))
        prefix, kept = conditioner.picture(flat_shapes.draw(scenes))
        prefixes.append(prefix)
        made = edits(scenes, rng)
        rows = [after_picture(prompts.about_image(text)) for _, _, text in made]
        instructions += conditioner.text(rows, kept, [a for a, _, _ in made])
        links += [(4 * begin + a, 4 * begin + b) for a, b, _ in made]
        plain += conditioner.text([after_picture(prompts.unconditional())] * 4, kept, range(4))
    return {
        "prefixes": torch.cat(prefixes).half(),
        "links": torch.tensor(links),
        "plain": torch.stack(plain).half(),
        **_ragged("captions", captions),
        **_ragged("instructions", instructions),
    }


def _ragged(name: str, rows: list[Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat(rows).half(), f"{name}_lengths": torch.tensor([len(row) for row in rows])}


class Data:
    """Every part in memory, as lists."""

    def __init__(self, folder: Path) -> None:
        self.latents: list[Tensor] = []
        self.scenes: list[flat_shapes.Scene] = []
        self.prefixes: list[Tensor] = []
        self.captions: list[Tensor] = []
        self.instructions: list[Tensor] = []
        self.plain: list[Tensor] = []
        self.links: list[tuple[int, int]] = []
        for file in sorted((folder / "data").glob("latents-*.safetensors")):
            if not file.with_name(file.name.replace("latents", "conditions")).is_file():
                continue
            part, begin = load_file(file.with_name(file.name.replace("latents", "conditions"))), len(self.latents)
            self.latents += load_file(file)["latents"].unbind()
            self.scenes += [scene for scenes in families(int(file.stem.split("-")[1])) for scene in scenes]
            self.prefixes += part["prefixes"].unbind()
            self.plain += part["plain"].unbind()
            self.captions += part["captions"].split(part["captions_lengths"].tolist())
            self.instructions += part["instructions"].split(part["instructions_lengths"].tolist())
            self.links += [(begin + a, begin + b) for a, b in part["links"].tolist()]
        self.targets: dict[int, list[int]] = {}
        for a, b in self.links:
            self.targets.setdefault(a, []).append(b)


# ---- training


def train(folder: Path, scale: float = 1.0) -> None:
    """The whole stage; latents and conditions have been written."""
    data, decoder = Data(folder), make_decoder()
    batches = Batches(data, Conditioner(stage_language.load(folder)))
    matrices = [w for name, w in decoder.named_parameters() if w.ndim == 2 and "blocks" in name]
    others = [w for w in decoder.parameters() if not any(w is matrix for matrix in matrices)]
    optimizers = [Muon(matrices, RATE), torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)]
    mean = copy.deepcopy(decoder).requires_grad_(False)
    guides = Guides(decoder)
    optimizers.append(torch.optim.AdamW(guides.parameters(), lr=RATE))

    def step(i: int, steps: int) -> dict[str, float]:
        set_rate(optimizers, RATE * cosine(i, steps, 40, hold=0.4))
        kind = ("text", "edit")[i % 2]
        batch = batches.make(kind, BATCH, i >= FULL_SHARE * steps)
        t = times(len(batch.latents))
        noise, at = torch.randn_like(batch.latents), t.view(-1, 1, 1, 1)
        text, y = decoder.refine(batch.conditions)
        noisy = (1 - at) * batch.latents + at * noise
        velocity = decoder(noisy, t, text, y, ref_latents=batch.references)
        loss = F.mse_loss(velocity, noise - batch.latents)
        guided, right = guides.losses(y, text.shape[1], batch.scenes)
        descend(loss + GUIDES * guided, decoder.parameters(), optimizers)
        average(mean, decoder, i)
        return {kind: loss.item(), f"{kind} vector right": right[0].item(), f"{kind} tokens right": right[1].item()}

    modules = {"model": mean, "trained": decoder, "guides": guides.heads}
    Run(folder, "decoder", modules, optimizers).train(step, round(STEPS * scale))


class Guides:
    """Predicts the scene from the refiner's vector and from the image tokens in the middle of the decoder."""

    def __init__(self, decoder: nn.Module) -> None:
        width = decoder.config.hidden_size
        self.heads = nn.ModuleDict(
            {
                "vector": nn.Linear(width, sum(ATTRIBUTES)),
                "early": nn.Linear(width, sum(REGIONS)),
                "late": nn.Linear(width, sum(REGIONS)),
            }
        )
        self.outputs: list[Tensor] = []
        decoder.double_blocks[-1].register_forward_hook(lambda _, __, out: self.outputs.append(out[0]))
        decoder.single_blocks[1].register_forward_hook(lambda _, __, out: self.outputs.append(out))

    def parameters(self) -> list[nn.Parameter]:
        """Of the heads."""
        return list(self.heads.parameters())

    def losses(self, y: Tensor, text: int, scenes: list[flat_shapes.Scene | None]) -> tuple[Tensor, list[Tensor]]:
        """Loss, and shares right for the vector (B, hidden) and the image tokens; None stands for any scene."""
        double, single = self.outputs
        self.outputs.clear()
        tokens = SIDE * SIDE
        known = torch.tensor([[UNKNOWN] * len(ATTRIBUTES) if scene is None else attributes(scene) for scene in scenes])
        vector, right = attribute_loss(self.heads["vector"](y), known, ATTRIBUTES)
        shown = torch.stack([_shown(scene) for scene in scenes])
        first, _ = attribute_loss(self.heads["early"](double[:, :tokens]), shown, REGIONS)
        second, tokens_right = attribute_loss(self.heads["late"](single[:, text : text + tokens]), shown, REGIONS)
        return vector + first + second, [right, tokens_right]


def _shown(scene: flat_shapes.Scene | None) -> Tensor:
    """For each image token (tokens, 3): the kind of the shape in it (0: none), the colour in its middle, the ground."""
    if scene is None:
        return torch.full((SIDE * SIDE, len(REGIONS)), UNKNOWN)
    ground = COLOURS.index(scene.background)
    out = torch.tensor([0, ground, ground]).repeat(SIDE * SIDE, 1)
    away = flat_shapes.distance(scene.shape, SIDE, step=STEP).flatten()
    out[away < STEP / 2, 0] = 1 + KINDS.index(scene.shape.kind)
    out[away < 0, 1] = COLOURS.index(scene.shape.colour)
    return out


@dataclass
class Batch:
    """Latents (B, 4, 16, 16), conditions (B, T, 2 * hidden), references of edits, and what each shows if it is said."""

    latents: Tensor
    conditions: Tensor
    references: tuple[Tensor, ...]
    scenes: list[flat_shapes.Scene | None]


def times(count: int) -> Tensor:
    """Times (count,) of a shifted logit-normal distribution, with a few spread evenly."""
    u = torch.sigmoid(1.2 * torch.randn(count))
    u = torch.where(torch.rand(count) < 0.1, torch.rand(count), u)
    return math.exp(SHIFT) * u / (1 + (math.exp(SHIFT) - 1) * u)


class Batches:
    """Draws training examples."""

    def __init__(self, data: Data, conditioner: Conditioner) -> None:
        self.data = data
        with torch.no_grad():
            self.blank, kept = blank_prefix(conditioner)
            (self.without_text,) = conditioner.text([after_picture(prompts.unconditional())], kept, [0])
        self.template = template_length()
        self.constant = torch.cat((self.blank, data.captions[0][: self.template].float()))

    def make(self, kind: str, count: int, full: bool) -> Batch:
        """A batch of text to image or of edits."""
        draw = self._text if kind == "text" else self._edit
        latents, texts, others, references, scenes = zip(*(draw() for _ in range(count)), strict=True)
        longest = min(len(text) + len(other) for text, other in zip(texts, others, strict=True))
        length = longest if full else random.choice(SHORT)
        conditions = [filled(text.float(), other.float(), length) for text, other in zip(texts, others, strict=True)]
        held = () if kind == "text" else (torch.stack(references),)
        return Batch(torch.stack(latents), torch.stack(conditions), held, list(scenes))

    def _text(self) -> tuple[Tensor, Tensor, Tensor, None, flat_shapes.Scene | None]:
        i = random.randrange(len(self.data.latents))
        z = self.data.latents[i]
        if random.random() < DROPPED:
            return z, self.without_text, self.blank, None, None
        caption = self.data.captions[CAPTIONS * i + random.randrange(CAPTIONS)]
        return z, caption[self.template :], self.constant, None, self.data.scenes[i]

    def _edit(self) -> tuple[Tensor, Tensor, Tensor, Tensor, flat_shapes.Scene | None]:
        data, i = self.data, random.randrange(len(self.data.links))
        before, after = data.links[i]
        text, scene = data.instructions[i], data.scenes[after]
        if random.random() < DROPPED:  # with the picture alone, any of its edits is as likely
            text, after, scene = data.plain[before], random.choice(data.targets[before]), None
        return data.latents[after], text, data.prefixes[before], data.latents[before], scene


def filled(text: Tensor, others: Tensor, length: int) -> Tensor:
    """All of a prompt's own tokens behind as many of the others, drawn by chance, as make `length` together."""
    chosen = torch.randperm(len(others))[: length - len(text)].sort().values
    return torch.cat((others[chosen], text))


def template_length() -> int:
    """Tokens of the text-to-image template before the user's own."""
    a, b = (after_picture(prompts.text_to_image(text)) for text in ("a red circle", "purple square"))
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y) - 1


def load(folder: Path) -> nn.Module:
    """The trained decoder, its weights averaged."""
    return load_module(folder, "decoder", make_decoder()).requires_grad_(False)


# ---- sampling, to score it without ComfyUI

SAMPLING_STEPS = 20
Branch = tuple[Tensor, tuple[Tensor, ...]]  # a condition (B, L, 2 * hidden), and references


@torch.no_grad()
def sample(decoder: nn.Module, noise: Tensor, branches: list[Branch], scales: list[float]) -> Tensor:
    """Latents by Euler steps on the model's schedule; branches from the least to the most informed."""
    refined = [(*decoder.refine(condition), references) for condition, references in branches]
    x, path = noise, core.schedule.shifted_times(SAMPLING_STEPS, SHIFT)
    for t, following in pairwise(path):
        at = torch.full((len(x),), t)
        answers = [decoder(x, at, context, y, ref_latents=references) for context, y, references in refined]
        velocity = answers[0]
        for scale, less, more in zip(scales, answers, answers[1:], strict=False):
            velocity = velocity + scale * (more - less)
        x = x + (following - t) * velocity
    return x
