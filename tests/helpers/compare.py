"""Comparison of tensors."""

from __future__ import annotations

from torch import Tensor


def close(actual: Tensor, expected: Tensor, limit: float = 5e-5) -> None:
    """Both agree within `limit` of the largest expected value."""
    assert actual.shape == expected.shape
    actual, expected = actual.double().cpu(), expected.double().cpu()
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= limit, f"off by {error:.2e} of the largest value; the limit is {limit:.0e}"
