"""Captions, instructions, questions and answers about scenes, each in phrasings to train on and phrasings held out."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from flat_shapes import COLOURS, COUNTS, KINDS, Scene, Shape, is_held_out

from import_core import import_core

# {o} the shape in words, {p} its place, {b} the ground's colour, {ab} the same with its article.
OPENINGS = ("", "a picture of ", "an image of ", "draw ", "the image shows ")
BODIES = (
    "{o}{p} on {ab} background",
    "{o}{p}, {b} background",
    "{ab} background with {o}{p}",
    "{o}{p} with {ab} background",
    "{o}{p} on {b}",
    "{o} on {b}{p}",
    "{o}{p}, the background is {b}",
)
NEW_CAPTIONS = (
    "a picture of {o}{p} on {ab} background",
    "draw {ab} background with {o}{p}",
    "the image shows {o}{p}, {b} background",
    "an image of {o}{p}, the background is {b}",
)
CAPTIONS = (
    "{b} background, {o}{p}",
    *(opening + body for opening in OPENINGS for body in BODIES if opening + body not in NEW_CAPTIONS),
)

# {s} the shape, {n} the new shape with its article, {c} the new colour, {ac} the same with its article.
EDITS = {
    "colour": (
        "make the {s} {c}",
        "make it {c}",
        "change the color of the {s} to {c}",
        "paint the {s} {c}",
        "turn the {s} {c}",
        "the {s} should be {c}",
        "change the color of the shape to {c}",
    ),
    "shape": (
        "turn the {s} into {n}",
        "replace the {s} with {n}",
        "make it {n}",
        "change the {s} to {n}",
        "turn it into {n}",
        "change the shape to {n}",
        "the shape should be {n}",
    ),
    "background": (
        "make the background {c}",
        "change the background to {c}",
        "put it on {ac} background",
        "paint the background {c}",
        "the background should be {c}",
        "change the color of the background to {c}",
    ),
}
NEW_EDITS = {
    "colour": ("paint it {c}", "make the shape {c}", "turn it {c}"),
    "shape": ("replace it with {n}", "make the {s} {n}", "turn the shape into {n}"),
    "background": ("turn the background {c}", "put the {s} on {ac} background"),
}

# The default of Ovis-U1 Judge.
JUDGE_QUESTION = import_core().text.prompts.FITS.replace("{prompt}", "{d}")
# {s} the shape or the word "shape", {c} a colour, {d} a caption, {side} left or right.
QUESTIONS = {
    "colour": (
        "What color is the {s}?",
        "What colour is the {s}?",
        "Which color is the {s}?",
        "Tell me the color of the {s}.",
    ),
    "background": ("What color is the background?", "What colour is the background?", "Which color is the background?"),
    "shape": ("What shape is it?", "Which shape is it?", "What shape is in the image?", "Tell me the shape."),
    "there": ("Is there a {s}?", "Is there a {s} in the image?"),
    "is": ("Is the {s} {c}?", "Is it true that the color of the {s} is {c}?", "Is the color of the {s} {c}?"),
    "ground": (
        "Is the background {c}?",
        "Is it true that the color of the background is {c}?",
        "Is the color of the background {c}?",
    ),
    "count": ("How many shapes are there?", "How many shapes are in the image?", "Count the shapes."),
    "describe": ("Describe the image.", "Describe this image.", "What is in the image?"),
    "side": ("Which shape is on the {side}?", "What shape is on the {side}?"),
    "judge": (JUDGE_QUESTION,),
}
NEW_QUESTIONS = {
    "colour": ("Which colour is the {s}?",),
    "background": ("Which colour is the background?", "Tell me the color of the background."),
    "shape": ("Which shape is in the image?",),
    "there": ("Is it true that there is a {s}?",),
    "is": ("Is it true that the {s} is {c}?",),
    "ground": ("Is it true that the background is {c}?",),
    "count": ("Tell me how many shapes there are.",),
    "describe": ("What is in this image?",),
    "side": ("Tell me which shape is on the {side}.",),
    "judge": (JUDGE_QUESTION,),
}
FOLLOW_UPS = ("What color is it?", "Which color is it?", "Tell me its color.")
NEW_FOLLOW_UPS = ("What colour is it?",)

# Words that no picture here shows. Training meets them as empty names, so that a LoRA can give them a meaning.
SPARE = ("hexagon", "star", "heart", "pink", "brown")


def article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def named(shape: Shape) -> str:
    """A shape in words, with its size if that is not the usual one."""
    return article(" ".join(word for word in (shape.size, shape.colour, shape.kind) if word))


def caption(scene: Scene, rng: Random, test: bool = False) -> str:
    """A prompt for a scene of one shape."""
    place = f" {scene.shape.place}" if scene.shape.place else ""
    text = rng.choice(NEW_CAPTIONS if test else CAPTIONS)
    text = text.format(o=named(scene.shape), p=place, b=scene.background, ab=article(scene.background))
    return text if test else _varied(text, rng)


def edit(scene: Scene, kind: str, rng: Random, test: bool = False) -> tuple[str, Scene]:
    """An instruction for a scene of one shape, and the scene that it asks for."""
    shape = scene.shape
    free = [colour for colour in COLOURS if colour not in (shape.colour, scene.background)]
    if kind == "colour":
        options = [scene.change(colour=colour) for colour in free]
    elif kind == "shape":
        options = [scene.change(kind=other) for other in KINDS if other != shape.kind]
    else:
        options = [scene.change(background=colour) for colour in free]
    options = [option for option in options if is_held_out(option) == test] or options
    after = rng.choice(options)
    return instruction(scene, after, kind, rng, test), after


def instruction(before: Scene, after: Scene, kind: str, rng: Random, test: bool = False) -> str:
    """Words that ask for the change of one kind between two scenes."""
    colour = after.background if kind == "background" else after.shape.colour
    text = rng.choice((NEW_EDITS if test else EDITS)[kind])
    text = text.format(s=before.shape.kind, n=article(after.shape.kind), c=colour, ac=article(colour))
    return text if test else _varied(text, rng)


def ask(scene: Scene, kind: str, rng: Random, test: bool = False) -> tuple[str, str]:
    """A question of a kind in `QUESTIONS`, and its answer."""
    shape = rng.choice(scene.shapes)
    name = shape.kind if len(scene.shapes) > 1 or rng.random() < 0.5 else "shape"
    values = {"s": name}
    if kind == "colour":
        answer = shape.colour
    elif kind == "background":
        answer = scene.background
    elif kind == "shape":
        answer = shape.kind
    elif kind == "there":
        present = [s.kind for s in scene.shapes]
        values["s"] = rng.choice(present if rng.random() < 0.5 else [s for s in KINDS if s not in present] or present)
        answer = _yes(values["s"] in present)
    elif kind in ("is", "ground"):
        truth = shape.colour if kind == "is" else scene.background
        near = [truth, scene.background if kind == "is" else shape.colour]
        values["c"] = truth if rng.random() < 0.5 else rng.choice([*near[1:], *COLOURS])
        answer = _yes(values["c"] == truth)
    elif kind == "count":
        answer = COUNTS[len(scene.shapes)]
    elif kind == "side":
        at = rng.randrange(2)
        values["side"] = ("left", "right")[at]
        answer = scene.shapes[at].kind
    elif kind == "judge":
        values["d"], fits = description_to_judge(scene, rng, test)
        answer = _yes(fits)
    else:
        answer = describe(scene)
    return rng.choice((NEW_QUESTIONS if test else QUESTIONS)[kind]).format(**values), answer


def kinds_of_questions(scene: Scene) -> list[str]:
    """The kinds of questions that a scene can be asked."""
    return [kind for kind in QUESTIONS if kind not in (("side",) if len(scene.shapes) == 1 else ("shape", "judge"))]


def conversation(scene: Scene, turns: int, rng: Random) -> list[tuple[str, str]]:
    """Questions with their answers; some look back at the answer before."""
    made: list[tuple[str, str]] = []
    # Of two shapes the one that is named must be found, which is learned last.
    kinds = kinds_of_questions(scene) + ["colour", "colour", "describe", "describe"] * (len(scene.shapes) - 1)
    while len(made) < turns:
        kind = rng.choice(kinds)
        made.append(ask(scene, kind, rng))
        if kind in ("side", "shape") and rng.random() < 0.6:
            made.append((rng.choice(FOLLOW_UPS), next(s.colour for s in scene.shapes if s.kind == made[-1][1])))
    return made


def describe(scene: Scene) -> str:
    """The answer to "Describe the image."."""
    shapes = " and ".join(article(f"{shape.colour} {shape.kind}") for shape in scene.shapes)
    return f"{shapes} on {article(scene.background)} background"


def description_to_judge(scene: Scene, rng: Random, test: bool) -> tuple[str, bool]:
    """A caption that fits a scene of one shape, or that is wrong in one thing; and whether it fits."""
    if rng.random() < 0.5:
        return caption(scene, rng, test), True
    other = edit(scene, rng.choice(list(EDITS)), rng, test)[1]
    return caption(other, rng, test), False


def described(scene: Scene, answer: str) -> bool:
    """Whether an answer names every shape with its colour, in order, and the ground."""
    return answer.strip().rstrip(".").lower() == describe(scene)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _varied(text: str, rng: Random) -> str:
    """The text as people write it: with a capital letter, with a full stop, or with neither."""
    text = text[0].upper() + text[1:] if rng.random() < 0.25 else text
    return text + "." if rng.random() < 0.2 else text


def every_text(scenes: Sequence[Scene]) -> list[str]:
    """Texts that together contain every token of captions, instructions, questions and answers."""
    texts = [
        f"a picture of {article(word)} {word} {word.capitalize()}" for word in (*SPARE, *COLOURS, *KINDS, "one", "two")
    ]
    for seed, scene in enumerate(scenes):
        for test in (False, True):
            rng = Random(seed)
            texts += [text for kind in kinds_of_questions(scene) for text in ask(scene, kind, rng, test)]
            if len(scene.shapes) == 1:
                texts += [caption(scene, rng, test), *(edit(scene, kind, rng, test)[0] for kind in EDITS)]
    return [*texts, *FOLLOW_UPS, *NEW_FOLLOW_UPS]
