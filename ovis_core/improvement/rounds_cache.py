"""The rounds that *Ovis-U1 Improve* has computed, for its next runs.

ComfyUI's caches do not keep the outputs of nodes that another node has made until the next run (newer versions drop
them if the machine has less than 128 GB of RAM), and cannot free what is kept here. So the memory is limited.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .rounds import Rounds


@dataclass(eq=False)
class ComputedRounds:
    """The rounds of one image that have been computed.

    edits  those that were the best so far, by the round: (1, height, width, 3)
    """

    rounds: Rounds = field(default_factory=Rounds)
    edits: dict[int, Tensor] = field(default_factory=dict)

    def add(self, rounds: Rounds, edit: Tensor | None) -> None:
        """Adds what `rounds` has more than is known; `edit` is the one that was judged last."""
        if edit is not None and rounds.kept[-1]:
            self.edits.setdefault(rounds.best, edit)
        # Loops about the same image can run in turns, if an input is a list.
        if rounds.progress > self.rounds.progress:
            self.rounds = rounds

    @property
    def nbytes(self) -> int:
        """Memory of the edits, in bytes."""
        return sum(edit.nbytes for edit in self.edits.values())


class RoundsCache:
    """`ComputedRounds` by image, models and settings. The least recently used are dropped first."""

    def __init__(self, limit: int) -> None:
        """limit: of the edits together, in bytes."""
        self.limit = limit
        self._kept: OrderedDict[Hashable, tuple[tuple[ref[Any], ...], ComputedRounds]] = OrderedDict()

    def recall(self, models: Iterable[Any], image: Tensor, settings: Hashable) -> ComputedRounds:
        """The rounds computed for an image (1, height, width, channels); empty at first, filled by the caller.

        models  the entry is dropped when one of them is deleted
        """
        self.trim()
        models = tuple(models)
        pixels = sha256(image.detach().cpu().contiguous().view(torch.uint8).numpy()).digest()
        key = (tuple(map(id, models)), tuple(image.shape), image.dtype, pixels, settings)
        if key not in self._kept:
            self._kept[key] = (tuple(ref(model, self._forget) for model in models), ComputedRounds())
        self._kept.move_to_end(key)
        return self._kept[key][1]

    def trim(self) -> None:
        """Drops the oldest entries until the edits take no more than the limit."""
        self._forget()
        total = sum(computed.nbytes for _, computed in self._kept.values())
        while total > self.limit:
            _, (_, computed) = self._kept.popitem(last=False)
            total -= computed.nbytes

    def _forget(self, _: Any = None) -> None:
        """Drops the entries of models that have been deleted."""
        for key, (models, _computed) in list(self._kept.items()):
            if any(model() is None for model in models):
                self._kept.pop(key, None)
