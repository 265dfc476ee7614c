"""The rounds in which the model improves an image: what to do next, and the log. Plain Python, without the model."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..text.prompts import ANSWER_SLOT, fill

SEEDS = 1 << 64
QUOTES = "\"'`"
JUDGE, ASK, EDIT, DONE = "judge", "ask", "edit", "done"


@dataclass(frozen=True)
class Goal:
    """The aim for an image, and the limits of the attempts.

    prompt       the text that the image should fit
    threshold    the score, 0 to 1, from which an image is finished
    rounds       maximum number of edits of an image
    question     asks the model what to change; may contain {prompt}
    instruction  of the edit; may contain {prompt}, and {answer} for the answer to `question`
    """

    prompt: str
    threshold: float
    rounds: int
    question: str
    instruction: str

    @property
    def asks(self) -> bool:
        """Whether the instruction needs an answer."""
        return ANSWER_SLOT in self.instruction


@dataclass(frozen=True)
class Rounds:
    """The rounds of one image so far.

    scores        of the input image, then of each edit
    instructions  of each edit; one more than edits with a score while an edit is being made
    kept          for each score, whether it was the best so far; the first one always is
    no_answer     whether the model's answer was empty
    """

    scores: tuple[float, ...] = ()
    instructions: tuple[str, ...] = ()
    kept: tuple[bool, ...] = ()
    no_answer: bool = False

    @property
    def best(self) -> int:
        """Index of the best score; 0 before the first score."""
        return max((number for number, kept in enumerate(self.kept) if kept), default=0)

    @property
    def score(self) -> float:
        """The best score, 0 to 1; NaN if the image's score is NaN and no edit had a number."""
        return self.scores[self.best]

    @property
    def progress(self) -> int:
        """The number of scores and answers."""
        return len(self.scores) + len(self.instructions) + self.no_answer

    @property
    def editing(self) -> bool:
        """Whether the last instruction's edit has not been judged yet."""
        return len(self.instructions) == len(self.scores) > 0

    def judged(self, score: float) -> Rounds:
        """These rounds with the score of the input image, or of the edit that was made last."""
        better = not self.scores or _comparable(score) > _comparable(self.score)
        return replace(self, scores=(*self.scores, score), kept=(*self.kept, better))

    def answered(self, answer: str, goal: Goal) -> Rounds:
        """These rounds with the next edit's instruction, made from the model's answer."""
        said = first_line(answer)
        if goal.asks and not said:
            return replace(self, no_answer=True)
        instruction = fill(goal.instruction, prompt=goal.prompt, answer=said)
        return replace(self, instructions=(*self.instructions, instruction))

    def repeated(self, goal: Goal) -> Rounds:
        """These rounds with an instruction that needs no new answer: the last one, or one without {answer}."""
        if self.instructions:
            return replace(self, instructions=(*self.instructions, self.instructions[-1]))
        return self.answered("", goal)

    def next(self, goal: Goal) -> str:
        """`JUDGE`, `ASK`, `EDIT` or `DONE`.

        The best image so far is edited. If the last edit was not better, its question would get the same answer, so the
        instruction is tried again, with another seed.
        """
        if not self.scores:
            return JUDGE
        if self.editing:
            return EDIT
        if self.no_answer or _comparable(self.score) >= goal.threshold or len(self.instructions) >= goal.rounds:
            return DONE
        return ASK if goal.asks and self.kept[-1] else EDIT

    def limited_to(self, goal: Goal) -> Rounds:
        """These rounds as far as they go with another threshold or number of rounds."""
        if not self.scores:
            return self
        rounds = Rounds().judged(self.scores[0])
        while rounds.next(goal) != DONE:
            count = len(rounds.scores)
            if count > len(self.instructions):
                return replace(rounds, no_answer=self.no_answer)
            rounds = replace(rounds, instructions=self.instructions[:count])
            if count == len(self.scores):
                return rounds
            rounds = rounds.judged(self.scores[count])
        return rounds

    def log(self, goal: Goal) -> str:
        """A line for each score, and one that says why the rounds ended, or what is being done."""
        lines = [f"Input image: {_shown(self.scores[0])}"] if self.scores else ["Judging the image ..."]
        for number, instruction in enumerate(self.instructions, 1):
            lines.append(f"Round {number}: {instruction}")
            if number < len(self.scores):
                verdict = "better, kept" if self.kept[number] else "not better, discarded"
                lines.append(f"  {_shown(self.scores[number])}, {verdict}")
        if self.next(goal) == DONE:
            lines.append(self._end(goal))
        return "\n".join(lines)

    def _end(self, goal: Goal) -> str:
        taken = f"round {self.best}" if self.best else "the input image"
        if _comparable(self.score) >= goal.threshold:
            why = f", which reaches the threshold of {goal.threshold:g}"
        elif self.no_answer:
            why = "; the model's answer was empty"
        else:
            rounds = f"{goal.rounds} round{'' if goal.rounds == 1 else 's'}"
            why = f"; the threshold of {goal.threshold:g} was not reached in {rounds}"
        return f"Result: {taken}, {_shown(self.score)}{why}."


def seed_of(seed: int, rounds: Rounds) -> int:
    """The seed of the edit whose instruction came last: `seed` in the first round, and one more in each later one."""
    return (seed + len(rounds.instructions) - 1) % SEEDS


def first_line(answer: str) -> str:
    """The first line of an answer that has text, without spaces and quotes around it."""
    line = next(filter(None, map(str.strip, answer.splitlines())), "")
    quoted = len(line) > 1 and line[0] in QUOTES and line[0] == line[-1] and line.count(line[0]) == 2
    return line[1:-1].strip() if quoted else line


def _comparable(score: float) -> float:
    """The score for comparisons: NaN is worse than any number."""
    return -1.0 if math.isnan(score) else score


def _shown(score: float) -> str:
    return "not a number" if math.isnan(score) else f"{score:.4f}"
