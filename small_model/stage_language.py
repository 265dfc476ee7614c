"""Language model and visual tokenizer, trained together on questions, captions and instructions.

Three losses beside the answers' make a small model learn in minutes what it would need hours for: each visual token
names what it shows, and the last two tokens of a prompt hold every attribute of the scene that it asks for.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import words
import world
from networks import (
    GRID,
    REGION,
    TOKENS,
    WIDTH,
    encode,
    join,
    logits,
    make_multimodal,
    patches,
    positions,
    prompts,
    row,
    see,
    states,
)
from torch import Tensor, nn
from torch.nn import functional as F
from training import Run, cosine, load_module, set_rate

STEPS = 2200
RATE = 2e-3
PICTURES = 12  # a step
CHOSEN = 112  # visual tokens of each that are computed, most of them near shapes
CAPTIONS = 20  # a step
FULL = 0.68  # share of the steps after which whole pictures are read, and fewer of them

COLOURS, KINDS, SIZES, PLACES = list(world.COLOURS), list(world.KINDS), list(world.SIZES), list(world.PLACES)
ATTRIBUTES = (len(KINDS), len(COLOURS), len(COLOURS), len(SIZES), len(PLACES))
REGIONS = (len(KINDS) + 1, len(COLOURS), len(COLOURS))
UNKNOWN = -100  # as a target: not counted


def train(folder: Path, scale: float = 1.0) -> None:
    """The whole stage."""
    model = make_multimodal()
    heads = nn.ModuleDict(
        {
            "features": nn.Linear(4 * 96, sum(REGIONS)),
            "words": nn.Linear(WIDTH, sum(REGIONS)),
            "condition": nn.Linear(2 * WIDTH, sum(ATTRIBUTES)),
        }
    )
    weights = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    blank = patches(torch.ones(1, 3, world.SIDE, world.SIDE), True)

    def step(i: int, steps: int) -> dict[str, float]:
        set_rate([optimizer], RATE * cosine(i, steps, 100))
        whole = i >= FULL * steps
        losses = picture_losses(model, heads, PICTURES // 2 if whole else PICTURES, TOKENS if whole else CHOSEN)
        losses |= caption_losses(model, heads, blank)
        optimizer.zero_grad(set_to_none=True)
        sum(value for name, value in losses.items() if not name.endswith("right")).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return {name: value.item() for name, value in losses.items()}

    Run(folder, "language", {"model": model, "heads": heads}, [optimizer]).train(step, round(STEPS * scale))


def picture_losses(model: nn.Module, heads: nn.ModuleDict, count: int, k: int) -> dict[str, Tensor]:
    """Losses of questions about pictures, of instructions about the same pictures, and of each visual token."""
    rng = random
    scenes = [world.make_scene(rng, False, 1 if i == 0 or rng.random() < 0.6 else 2) for i in range(count)]
    chosen = torch.stack([choose(scene, k) for scene in scenes])
    seen, features = see(model, patches(world.draw(scenes), rng.random() < 0.5), chosen)

    targets = torch.stack([regions(scene) for scene in scenes]).gather(1, chosen[..., None].expand(-1, -1, 3))
    named = {
        name: attribute_loss(heads[name](x), targets, REGIONS) for name, x in (("features", features), ("words", seen))
    }

    rows, answers, wanted = [], [], []
    for scene in scenes:
        ids, answer = question_rows(scene, 3)
        rows.append(ids)
        answers.append(answer)
    single = [i for i, scene in enumerate(scenes) if len(scene.shapes) == 1]
    for i in single:
        kind = rng.choice([*words.EDITS, "none"])
        text, after = words.edit(scenes[i], kind, rng) if kind != "none" else (prompts.UNCONDITIONAL, scenes[i])
        rows.append(encode(prompts.about_image(text)))
        wanted.append(attributes(after))
    ids, lengths = padded(rows)
    owner = torch.tensor([*range(count), *single])
    x = join(model, ids, seen[owner])
    final, before = states(model, x, positions(chosen[owner], ids.shape[1]))
    offset = k + 2

    hidden, target = [], []
    for i, answer in enumerate(answers):
        at = torch.tensor(answer)
        hidden.append(final[i, offset + at - 1])
        target.append(ids[i, at])
    target = torch.cat(target)
    answered = logits(model, torch.cat(hidden))
    condition = torch.cat((final, before), -1)[count:]
    asked = condition_loss(heads["condition"], condition, lengths[count:] + offset, torch.tensor(wanted))
    return {
        "answers": F.cross_entropy(answered, target),
        "answers right": (answered.argmax(1) == target).float().mean(),
        "features": 0.5 * named["features"][0],
        "words": 0.5 * named["words"][0],
        "words right": named["words"][1],
        "edits": 0.5 * asked[0],
        "edits right": asked[1],
    }


def caption_losses(model: nn.Module, heads: nn.ModuleDict, blank: Tensor) -> dict[str, Tensor]:
    """Loss of prompts for an image, which is blank as yet."""
    rows, wanted = [], []
    for _ in range(CAPTIONS):
        scene = world.make_scene(random, False)
        text, target = words.caption(scene, random), attributes(scene)
        if random.random() < 0.08:
            text, target = spare(text, scene, target)
        rows.append(encode(prompts.text_to_image(text)))
        wanted.append(target)
    ids, lengths = padded(rows)
    chosen = torch.randperm(TOKENS)[:6].sort().values[None]
    seen, _ = see(model, blank, chosen)
    x = join(model, ids, seen.expand(len(ids), -1, -1))
    both = torch.cat(states(model, x, positions(chosen.expand(len(ids), -1), ids.shape[1])), -1)
    loss, right = condition_loss(heads["condition"], both, lengths + 8, torch.tensor(wanted))
    return {"captions": 0.5 * loss, "captions right": right}


def spare(text: str, scene: world.Scene, target: list[int]) -> tuple[str, list[int]]:
    """A caption with a word that means nothing yet in the place of its shape's or its colour's."""
    word, target = random.choice(words.SPARE), list(target)
    if word in ("pink", "brown"):
        target[1] = UNKNOWN
        return text.replace(scene.shape.colour, word), target
    target[0] = UNKNOWN
    return text.replace(scene.shape.kind, word), target


def question_rows(scene: world.Scene, turns: int) -> tuple[list[int], list[int]]:
    """Rows of a conversation, and where its answers' tokens stand, the end of the turn included."""
    ids: list[int] = []
    at: list[int] = []
    for i, (question, answer) in enumerate(words.conversation(scene, turns, random)):
        turn = prompts.question(question, 1) if i == 0 else ["\n", *prompts.user_turn([question])]
        ids += encode([*turn, *prompts.answer_start()])
        said = [*encode([answer]), row(prompts.Control.TURN_END)]
        at += range(len(ids), len(ids) + len(said))
        ids += said
    return ids, at


def condition_loss(head: nn.Module, both: Tensor, ends: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and share right of the attributes in the last two tokens of each row of conditions (B, L, 2 * hidden)."""
    last = torch.stack((ends - 1, ends - 2), 1)
    taken = both.gather(1, last[..., None].expand(-1, -1, both.shape[-1]))
    return attribute_loss(head(taken), wanted[:, None].expand(-1, 2, -1), ATTRIBUTES)


def attribute_loss(scores: Tensor, targets: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Cross entropy, summed over attributes, and share right: scores (..., sum(sizes)), targets (..., len(sizes))."""
    loss, right = torch.zeros(()), []
    for part, target in zip(scores.flatten(0, -2).split(sizes, 1), targets.flatten(0, -2).unbind(1), strict=True):
        loss = loss + F.cross_entropy(part, target, ignore_index=UNKNOWN)
        counted = target != UNKNOWN
        right.append((part.argmax(1) == target)[counted].float().mean())
    return loss, torch.stack(right).mean()


def attributes(scene: world.Scene) -> list[int]:
    """A scene of one shape as indexes: kind, colour, ground, size, place."""
    shape = scene.shape
    return [
        KINDS.index(shape.kind),
        COLOURS.index(shape.colour),
        COLOURS.index(scene.background),
        SIZES.index(shape.size),
        PLACES.index(shape.place),
    ]


def regions(scene: world.Scene) -> Tensor:
    """For each visual token (tokens, 3): kind of the shape that it shows (0: none), its colour, the background."""
    ground = COLOURS.index(scene.background)
    out = torch.tensor([0, ground, ground]).repeat(TOKENS, 1)
    for shape in scene.shapes:
        away = world.distance(shape, GRID, step=REGION).flatten()
        out[away < REGION / 2, 0] = 1 + KINDS.index(shape.kind)
        out[away < 0, 1] = COLOURS.index(shape.colour)
    return out


def choose(scene: world.Scene, k: int) -> Tensor:
    """Indexes (k,) of visual tokens, ascending: those near the shapes, and others by chance."""
    if k == TOKENS:
        return torch.arange(TOKENS)
    away = torch.stack([world.distance(shape, GRID, step=REGION).flatten() for shape in scene.shapes]).amin(0)
    order = torch.rand(TOKENS) + 2.0 * (away < REGION)
    return order.topk(k).indices.sort().values


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, filled up at their ends, and their lengths."""
    most = max(map(len, rows))
    end = row(prompts.Control.TURN_END)
    return torch.tensor([ids + [end] * (most - len(ids)) for ids in rows]), torch.tensor([len(ids) for ids in rows])


def load(folder: Path) -> nn.Module:
    """The trained language model and visual tokenizer."""
    return load_module(folder, "language", make_multimodal()).requires_grad_(False)
