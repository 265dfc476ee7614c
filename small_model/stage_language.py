"""Trains the language model on captions, instructions and questions; the trained visual tokenizer does not change.

Each image is encoded once, and its embeddings are used in many questions. In addition to the loss of the answers, two
losses teach which attributes matter: the last two tokens of a prompt must predict every attribute of the scene that it
asks for, and the token before an answer every attribute of the image.
"""

from __future__ import annotations

import random
from pathlib import Path

import flat_shapes
import phrasings
import stage_vision
import torch
from networks import (
    TOKENS,
    WIDTH,
    encode,
    encode_images,
    join,
    logits,
    make_multimodal,
    positions,
    prompts,
    row,
    states,
    to_patches,
)
from safetensors.torch import load_file, save_file
from stage_vision import UNKNOWN, attribute_loss, choose
from torch import Tensor, nn
from torch.nn import functional as F
from training import Muon, Run, cosine, descend, load_module, set_rate

PICTURES, PART = 4000, 100
STEPS = 6300
RATE = 1.5e-3
ROWS = 24  # conversations a step
INSTRUCTIONS, CAPTIONS = 10, 8
TURNS = 4
LENGTHS = (24, 32, 48, 64)  # visual tokens of each picture that a step reads, most of them near shapes
WHOLE = 0.4  # share of the steps after which every other reads whole pictures, and fewer of them

COLOURS, KINDS, SIZES, PLACES = (
    list(flat_shapes.COLOURS),
    list(flat_shapes.KINDS),
    list(flat_shapes.SIZES),
    list(flat_shapes.PLACES),
)
ATTRIBUTES = (len(KINDS), len(COLOURS), len(COLOURS), len(SIZES), len(PLACES))
SHOWN = (len(COLOURS), 2, len(KINDS), len(COLOURS), len(KINDS), len(COLOURS))  # ground, count, both shapes


# ---- embeddings, computed once


@torch.no_grad()
def write_embeddings(folder: Path, worker: int = 0, workers: int = 1) -> None:
    """Writes the embeddings of the training images to files; files that exist are kept."""
    model = stage_vision.load(folder)
    every = torch.arange(TOKENS)
    for part in range(worker, PICTURES // PART, workers):
        file = folder / "data" / f"embeddings-{part:04}.safetensors"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            embeddings = []
            for i, scene in enumerate(scenes_of(part)):
                patches = to_patches(flat_shapes.draw([scene]), bool(i % 2))
                embeddings.append(encode_images(model, patches, every[None])[0])
            save_file({"embeddings": torch.cat(embeddings).half()}, file.with_suffix(".new"))
            file.with_suffix(".new").replace(file)
            print(f"embeddings: part {part + 1} of {PICTURES // PART}", flush=True)


def scenes_of(part: int) -> list[flat_shapes.Scene]:
    """The scenes of one file, three of five with one shape."""
    rng = random.Random(f"seen {part}")  # the seeds of the weights that come with the pack
    return [flat_shapes.make_scene(rng, False, 1 if i % 5 < 3 else 2) for i in range(PART)]


class CachedEmbeddings:
    """The training scenes with the embeddings that `write_embeddings` wrote."""

    def __init__(self, folder: Path) -> None:
        self.scenes: list[flat_shapes.Scene] = []
        self.embeddings: list[Tensor] = []
        for file in sorted((folder / "data").glob("embeddings-*.safetensors")):
            self.scenes += scenes_of(int(file.stem.split("-")[1]))
            self.embeddings += load_file(file)["embeddings"].unbind()
        self.single = [i for i, scene in enumerate(self.scenes) if len(scene.shapes) == 1]

    def draw(self, indexes: list[int], k: int) -> tuple[Tensor, Tensor]:
        """Embeddings of k visual tokens of each image (B, k, hidden), and which tokens they are (B, k)."""
        chosen = torch.stack([choose(self.scenes[i], k) for i in indexes])
        taken = [self.embeddings[i][which].float() for i, which in zip(indexes, chosen, strict=True)]
        return torch.stack(taken), chosen


# ---- training


def train(folder: Path, scale: float = 1.0) -> None:
    """The whole stage; `write_embeddings` has been run."""
    model, data = stage_vision.load(folder), CachedEmbeddings(folder)
    heads = nn.ModuleDict({"condition": nn.Linear(2 * WIDTH, sum(ATTRIBUTES)), "shown": nn.Linear(WIDTH, sum(SHOWN))})
    model.requires_grad_(False)
    model.llm.requires_grad_(True)
    weights = [*model.llm.parameters(), *heads.parameters()]
    matrices = [weight for name, weight in model.llm.named_parameters() if weight.ndim == 2 and "layers" in name]
    others = [weight for weight in weights if not any(weight is matrix for matrix in matrices)]
    optimizers = [Muon(matrices, RATE), torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)]
    with torch.no_grad():
        patches = to_patches(torch.ones(1, 3, flat_shapes.SIDE, flat_shapes.SIDE), True)
        blank = encode_images(model, patches, torch.arange(TOKENS)[None])[0]

    def step(i: int, steps: int) -> dict[str, float]:
        set_rate(optimizers, RATE * cosine(i, steps, 100, hold=0.2))
        whole = i >= WHOLE * steps and i % 2 == 0
        k, share = (TOKENS, 3) if whole else (random.choice(LENGTHS), 1)
        losses = question_losses(model, heads, data, ROWS // share, k)
        if i // 4 % 2:
            losses |= instruction_losses(model, heads, data, INSTRUCTIONS // share, k)
        else:
            losses |= caption_losses(model, heads, blank, CAPTIONS // share, k)
        descend(sum(value for name, value in losses.items() if not name.endswith("right")), weights, optimizers)
        return {name: value.item() for name, value in losses.items()}

    Run(folder, "language", {"model": model, "heads": heads}, optimizers).train(step, round(STEPS * scale))


def question_losses(
    model: nn.Module, heads: nn.ModuleDict, data: CachedEmbeddings, count: int, k: int
) -> dict[str, Tensor]:
    """Losses of conversations about images: the answers, and the attributes predicted at the token before each."""
    indexes = random.sample(range(len(data.scenes)), count)
    embeddings, chosen = data.draw(indexes, k)
    rows = [question_rows(data.scenes[i]) for i in indexes]
    ids, _ = padded([ids for ids, _ in rows])
    final, _ = states(model, join(model, ids, embeddings), positions(chosen, ids.shape[1]))
    hidden, target, before, shown = [], [], [], []
    for i, (_, answers) in enumerate(rows):
        at = torch.tensor([place for answer in answers for place in answer])
        hidden.append(final[i, k + 2 + at - 1])
        target.append(ids[i, at])
        first = torch.tensor([answer[0] for answer in answers])
        before.append(final[i, k + 2 + first - 1])
        shown.append(torch.tensor(what_is_shown(data.scenes[indexes[i]])).expand(len(answers), -1))
    answered, wanted = logits(model, torch.cat(hidden)), torch.cat(target)
    known, known_right = attribute_loss(heads["shown"](torch.cat(before)), torch.cat(shown), SHOWN)
    return {
        "answers": F.cross_entropy(answered, wanted),
        "answers right": (answered.argmax(1) == wanted).float().mean(),
        "shown": 0.3 * known,
        "shown right": known_right,
    }


def instruction_losses(
    model: nn.Module, heads: nn.ModuleDict, data: CachedEmbeddings, count: int, k: int
) -> dict[str, Tensor]:
    """Loss of the attributes of the requested scene, predicted at the end of an instruction."""
    indexes = random.sample(data.single, count)
    embeddings, chosen = data.draw(indexes, k)
    rows, wanted = [], []
    for i in indexes:
        kind = random.choice([*phrasings.EDITS, *phrasings.EDITS, "none"])
        scene = data.scenes[i]
        text, after = phrasings.edit(scene, kind, random) if kind != "none" else (prompts.UNCONDITIONAL, scene)
        rows.append(encode(prompts.about_image(text)))
        wanted.append(attributes(after))
    loss, right = prompt_loss(model, heads["condition"], rows, wanted, embeddings, chosen)
    return {"edits": 0.5 * loss, "edits right": right}


def caption_losses(model: nn.Module, heads: nn.ModuleDict, blank: Tensor, count: int, k: int) -> dict[str, Tensor]:
    """The same for prompts of text to image, whose image is blank."""
    rows, wanted = [], []
    for _ in range(count):
        scene = flat_shapes.make_scene(random, False)
        text, target = phrasings.caption(scene, random), attributes(scene)
        if random.random() < 0.08:
            text, target = spare(text, scene, target)
        rows.append(encode(prompts.text_to_image(text)))
        wanted.append(target)
    chosen = torch.randperm(TOKENS)[:k].sort().values
    embeddings = blank[:, chosen].expand(count, -1, -1)
    where = chosen.expand(count, -1)
    loss, right = prompt_loss(model, heads["condition"], rows, wanted, embeddings, where)
    return {"captions": 0.5 * loss, "captions right": right}


def prompt_loss(
    model: nn.Module,
    head: nn.Module,
    rows: list[list[int]],
    wanted: list[list[int]],
    embeddings: Tensor,
    chosen: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss and share right of the attributes in the last two tokens of each prompt's condition."""
    ids, lengths = padded(rows)
    both = torch.cat(states(model, join(model, ids, embeddings), positions(chosen, ids.shape[1])), -1)
    ends = lengths + chosen.shape[1] + 2
    last = torch.stack((ends - 1, ends - 2), 1)
    taken = both.gather(1, last[..., None].expand(-1, -1, both.shape[-1]))
    return attribute_loss(head(taken), torch.tensor(wanted)[:, None].expand(-1, 2, -1), ATTRIBUTES)


def spare(text: str, scene: flat_shapes.Scene, target: list[int]) -> tuple[str, list[int]]:
    """A caption with a word that means nothing yet in place of its shape's or its colour's."""
    word, target = random.choice(phrasings.SPARE), list(target)
    if word in ("pink", "brown"):
        target[1] = UNKNOWN
        return text.replace(scene.shape.colour, word), target
    target[0] = UNKNOWN
    return text.replace(scene.shape.kind, word), target


def question_rows(scene: flat_shapes.Scene) -> tuple[list[int], list[range]]:
    """Rows of a conversation, and where each answer's tokens stand, the end of its turn included."""
    ids: list[int] = []
    answers: list[range] = []
    for i, (question, answer) in enumerate(phrasings.conversation(scene, TURNS, random)):
        turn = prompts.question(question, 1) if i == 0 else ["\n", *prompts.user_turn([question])]
        ids += encode([*turn, *prompts.answer_start()])
        said = [*encode([answer]), row(prompts.Control.TURN_END)]
        answers.append(range(len(ids), len(ids) + len(said)))
        ids += said
    return ids, answers


def attributes(scene: flat_shapes.Scene) -> list[int]:
    """A scene of one shape as indexes: kind, colour, ground, size, place."""
    shape = scene.shape
    return [
        KINDS.index(shape.kind),
        COLOURS.index(shape.colour),
        COLOURS.index(scene.background),
        SIZES.index(shape.size),
        PLACES.index(shape.place),
    ]


def what_is_shown(scene: flat_shapes.Scene) -> list[int]:
    """A scene as indexes for `SHOWN`."""
    shapes = [(KINDS.index(shape.kind), COLOURS.index(shape.colour)) for shape in scene.shapes]
    first, second = (*shapes, (UNKNOWN, UNKNOWN))[:2]
    return [COLOURS.index(scene.background), len(shapes) - 1, *first, *second]


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, filled up at their ends, and their lengths."""
    longest = max(map(len, rows))
    end = row(prompts.Control.TURN_END)
    return torch.tensor([ids + [end] * (longest - len(ids)) for ids in rows]), torch.tensor([len(ids) for ids in rows])


def load(folder: Path) -> nn.Module:
    """The trained language model and visual tokenizer."""
    return load_module(folder, "language", make_multimodal()).requires_grad_(False)
