"""The other tests build the same small model that the authors' code ran on."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor


def test_tensors_follow_the_rule_of_the_goldens(golden: dict[str, Any], weights: dict[str, Tensor]) -> None:
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == {
        name: entry[0] for name, entry in golden["weights"].items()
    }
    for name, (_, total, first, last) in golden["weights"].items():
        values = weights[name].numpy().ravel()
        assert values[0] == np.float32(first), name
        assert values[-1] == np.float32(last), name
        assert abs(values.astype(np.float64).sum() - total) < 1e-9 * max(1.0, abs(total)), name
