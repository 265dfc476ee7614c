"""The rounds that are kept for the next runs."""

from __future__ import annotations

import gc
from weakref import ref

import torch

from ovis_core.improvement.rounds import Rounds
from ovis_core.improvement.rounds_cache import ComputedRounds, RoundsCache

MB = 1_000_000


class Model:
    """Something that can be deleted."""


def image(number: int) -> torch.Tensor:
    return torch.full((1, 4, 4, 3), number / 255)


def fill(computed: ComputedRounds, megabytes: int = 1) -> None:
    """A round with an edit of this size."""
    rounds = Rounds().judged(0.1)
    computed.add(rounds, None)
    edit = torch.zeros(1, megabytes * MB // 4, 1, 1)
    computed.add(Rounds((0.1,), ("One.",), (True,)).judged(0.2), edit)


def test_every_image_of_a_list_is_recalled() -> None:
    cache, models = RoundsCache(512 * MB), (Model(), Model())
    first = [cache.recall(models, image(number), "settings") for number in range(5)]
    for computed in first:
        fill(computed)
    # Equal pixels in other memory.
    again = [cache.recall(models, image(number).clone(), "settings") for number in range(5)]
    assert all(a is b for a, b in zip(first, again, strict=True))
    assert len({id(computed) for computed in first}) == 5


def test_other_pixels_models_or_settings_are_other_rounds() -> None:
    cache, model = RoundsCache(MB), Model()
    known = cache.recall([model], image(1), ("prompt", 3))
    other = Model()
    assert cache.recall([model], image(2), ("prompt", 3)) is not known
    assert cache.recall([model], image(1).view(1, 4, 3, 4), ("prompt", 3)) is not known
    assert cache.recall([model], image(1).double(), ("prompt", 3)) is not known
    assert cache.recall([model], image(1), ("prompt", 4)) is not known
    assert cache.recall([other], image(1), ("prompt", 3)) is not known
    assert cache.recall([model], image(1), ("prompt", 3)) is known


def test_the_least_recently_used_are_dropped_at_the_limit() -> None:
    cache, model = RoundsCache(3 * MB), Model()
    known = [cache.recall([model], image(number), "") for number in range(3)]
    for computed in known:
        fill(computed)
    cache.trim()
    assert cache.recall([model], image(0), "") is known[0]  # now the most recent one
    fill(cache.recall([model], image(3), ""))
    cache.trim()
    assert cache.recall([model], image(0), "") is known[0]
    assert cache.recall([model], image(2), "") is known[2]
    assert cache.recall([model], image(1), "") is not known[1]


def test_rounds_of_a_deleted_model_are_freed() -> None:
    cache, model, other = RoundsCache(512 * MB), Model(), Model()
    kept = cache.recall([other], image(1), "")
    computed = cache.recall([model, other], image(1), "")
    fill(computed)
    freed = ref(computed.edits[1])
    del computed
    assert freed() is not None
    del model
    gc.collect()
    assert freed() is None
    assert cache.recall([other], image(1), "") is kept


def test_the_longer_rounds_are_kept() -> None:
    """Two loops about the same image run in turns, if an input is a list."""
    computed, edit = ComputedRounds(), torch.ones(1, 2, 2, 3)
    judged = Rounds().judged(0.1)
    edited = Rounds((0.1,), ("One.",), (True,)).judged(0.2)
    for rounds, made in ((judged, None), (edited, edit), (judged, None), (edited, edit + 1)):
        computed.add(rounds, made)
    assert computed.rounds == edited
    assert torch.equal(computed.edits[1], edit)
    worse = Rounds(edited.scores, ("One.", "Two."), edited.kept).judged(0.15)
    computed.add(worse, edit)
    assert (computed.rounds, set(computed.edits)) == (worse, {1})
    assert computed.nbytes == edit.nbytes
