"""The decisions of the loop that improves an image, and its log."""

from __future__ import annotations

import math

import pytest

from ovis_core.improvement.rounds import ASK, DONE, EDIT, JUDGE, Goal, Rounds, first_line, seed_of
from ovis_core.text.prompts import ANSWER_SLOT, fill

NAN = float("nan")


def goal(threshold: float = 0.8, rounds: int = 3, instruction: str = ANSWER_SLOT) -> Goal:
    return Goal("a red cat", threshold, rounds, "What is wrong?", instruction)


def play(goal: Goal, scores: list[float], answers: list[str]) -> tuple[Rounds, list[str], list[int]]:
    """Runs the rounds with these scores and answers; the played, what was done, and the seeds of the edits."""
    left, said = iter(scores), iter(answers)
    played, done, seeds = Rounds().judged(next(left)), [], []
    while (following := played.next(goal)) != DONE:
        done.append(following)
        played = played.answered(next(said), goal) if following == ASK else played.repeated(goal)
        if len(played.instructions) == len(played.scores):
            seeds.append(seed_of(7, played))
            played = played.judged(next(left))
    assert next(left, None) is None
    return played, done, seeds


def test_an_image_that_fits_is_only_judged() -> None:
    played, done, _ = play(goal(), [0.8], [])
    assert (played.best, played.score, done) == (0, 0.8, [])
    assert played.log(goal()) == "\n".join(
        ["Input image: 0.8000", "Result: the input image, 0.8000, which reaches the threshold of 0.8."]
    )


def test_rounds_end_at_the_threshold() -> None:
    played, done, seeds = play(goal(), [0.1, 0.4, 0.9], ["Add a cat.", "Make the cat red."])
    assert (played.best, done, seeds) == (2, [ASK, ASK], [7, 8])
    assert played.log(goal()) == "\n".join(
        [
            "Input image: 0.1000",
            "Round 1: Add a cat.",
            "  0.4000, better, kept",
            "Round 2: Make the cat red.",
            "  0.9000, better, kept",
            "Result: round 2, 0.9000, which reaches the threshold of 0.8.",
        ]
    )


def test_the_best_image_is_kept_and_its_instruction_is_tried_again_with_another_seed() -> None:
    """The question about the same image would get the same answer."""
    played, done, seeds = play(goal(), [0.3, 0.2, 0.3, 0.1], ["Add a cat."])
    assert (played.best, played.score) == (0, 0.3)
    assert (done, seeds) == ([ASK, EDIT, EDIT], [7, 8, 9])
    assert played.instructions == ("Add a cat.",) * 3
    assert played.log(goal()).count("not better, discarded") == 3
    assert played.log(goal()).endswith(
        "Result: the input image, 0.3000; the threshold of 0.8 was not reached in 3 rounds."
    )


def test_the_next_question_is_about_the_new_best_image() -> None:
    played, done, _ = play(goal(rounds=4), [0.1, 0.2, 0.15, 0.5, 0.4], ["One.", "Two.", "Three."])
    assert done == [ASK, ASK, EDIT, ASK]
    assert played.instructions == ("One.", "Two.", "Two.", "Three.")
    assert (played.best, played.score) == (3, 0.5)


def test_without_an_answer_in_the_instruction_nothing_is_asked() -> None:
    played, done, _ = play(goal(instruction="Make it {prompt}."), [0.1, 0.2, 0.9], [])
    assert done == [EDIT, EDIT]
    assert played.instructions == ("Make it a red cat.",) * 2


@pytest.mark.parametrize("answer", ["", "\n \n", "  "])
def test_an_empty_answer_ends_the_rounds(answer: str) -> None:
    played, done, _ = play(goal(instruction="Do this: {answer}"), [0.1], [answer])
    assert done == [ASK]
    assert played.log(goal()).endswith("Result: the input image, 0.1000; the model's answer was empty.")


@pytest.mark.parametrize(
    ("threshold", "rounds", "scores", "edits"),
    [
        (0.0, 3, [0.0], 0),
        (1.0, 3, [0.999, 0.9999, 1.0], 2),
        (1.0, 2, [0.5, 0.6, 0.7], 2),
        (0.8, 0, [0.1], 0),
        (1.0, 0, [0.1], 0),
    ],
)
def test_limits_of_threshold_and_rounds(threshold: float, rounds: int, scores: list[float], edits: int) -> None:
    played, *_ = play(goal(threshold, rounds), scores, ["More."] * 3)
    assert len(played.instructions) == edits
    assert played.score == max(scores)


def test_a_score_that_is_not_a_number_is_worse_than_any_other() -> None:
    played, *_ = play(goal(rounds=2), [0.1, NAN, 0.2], ["One."])
    assert (played.best, played.score) == (2, 0.2)
    assert "  not a number, not better, discarded" in played.log(goal(rounds=2))
    played, *_ = play(goal(rounds=2), [NAN, 0.0, NAN], ["One.", "Two."])
    assert (played.best, played.score) == (1, 0.0)
    played, *_ = play(goal(0.0, 1), [NAN, NAN], ["One."])
    assert played.best == 0
    assert math.isnan(played.score)
    assert "not reached in 1 round." in played.log(goal(0.0, 1))


def test_log_while_the_rounds_run() -> None:
    played = Rounds()
    assert (played.log(goal()), played.next(goal())) == ("Judging the image ...", JUDGE)
    played = played.judged(0.1)
    assert played.log(goal()) == "Input image: 0.1000"
    played = played.answered("Add a cat.", goal())
    assert (played.log(goal()), played.next(goal())) == ("Input image: 0.1000\nRound 1: Add a cat.", EDIT)


@pytest.mark.parametrize("count", range(4))
def test_known_rounds_are_used_again_as_far_as_they_go(count: int) -> None:
    scores, answers = [0.1, 0.5, 0.4, 0.9], ["One.", "Two."]
    whole, *_ = play(goal(1.0, 3), scores, answers)
    for wanted in (goal(1.0, count), goal(max(scores[: count + 1]), 3)):
        fresh, *_ = play(wanted, scores[: len(whole.limited_to(wanted).scores)], answers)
        assert whole.limited_to(wanted) == fresh
        assert fresh.limited_to(goal(1.0, 9)).limited_to(wanted) == fresh
    # More rounds continue from the last one, as they would without a stop.
    more = whole.limited_to(goal(1.0, 4))
    assert (more, more.next(goal(1.0, 4))) == (whole, ASK)


def test_known_rounds_with_a_stop_in_between() -> None:
    assert Rounds().limited_to(goal()) == Rounds()
    asked = Rounds().judged(0.1).answered("One.", goal())
    assert asked.limited_to(goal()) == asked
    assert asked.editing
    assert asked.limited_to(goal(0.1)) == Rounds().judged(0.1)
    no_answer = Rounds().judged(0.1).answered("", goal())
    assert no_answer.limited_to(goal(0.9, 5)) == no_answer
    assert no_answer.limited_to(goal(0.1)) == Rounds().judged(0.1)


def test_seeds_stay_in_range() -> None:
    played = Rounds((0.1, 0.1), ("One.", "One."), (True, False))
    assert seed_of(2**64 - 1, played) == 0


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("Add a cat.", "Add a cat."),
        ('\n "Add a cat."\nIt is missing.', "Add a cat."),
        ('Add a sign that says "Open"', 'Add a sign that says "Open"'),
        ('"Open" must be "Closed"', '"Open" must be "Closed"'),
        ('"', '"'),
    ],
)
def test_the_first_line_of_an_answer(answer: str, line: str) -> None:
    assert first_line(answer) == line


def test_braces_in_texts_stay() -> None:
    assert fill("{prompt}, {answer}, {other}", prompt="{answer}", answer=r"\1 {prompt}") == (
        r"{answer}, \1 {prompt}, {other}"
    )
