"""Counts a pass's kernels, bytes, arithmetic and live tensors.

This needs no GPU. With fake tensors it needs no weights either, so it can count the full size.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# A GPU runs each of these as one kernel, a CPU as several. They are counted as one.
FUSED = (F.rms_norm, torch.rms_norm)
ATTENTION = (F.scaled_dot_product_attention,)
ALLOCATIONS = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided")


@dataclass
class Counts:
    """Counts of a run.

    kernels  operations that compute or copy, without views and allocations
    bytes    read and written by them, without the effect of caches
    flops    of matrix products, convolutions and attention
    """

    kernels: int = 0
    bytes: int = 0
    flops: int = 0


@contextmanager
def counting() -> Iterator[Counts]:
    """A context that counts torch's operations, on real or fake tensors."""
    counts = Counts()
    operations = _Counting(counts)
    with operations, _Fused(operations):
        yield counts


class Operations(TorchDispatchMode):
    """Calls `on_operation` after each of torch's operations, divided into those that a device runs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        with self:  # in inference mode some operations arrive here undivided
            out = func.decompose(*args, **(kwargs or {}))
        if out is NotImplemented:
            out = func(*args, **(kwargs or {}))
            self.on_operation(func, args, kwargs or {}, out)
        return out

    def on_operation(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        """An operation with its inputs and outputs."""
        raise NotImplementedError


class _Counting(Operations):
    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self.inside_fused = False

    def on_operation(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
        if not self.inside_fused and func._schema.name not in ALLOCATIONS:
            flops = flop_registry.get(func.overloadpacket)
            amount = flops(*args, **kwargs, out_val=out) if flops else 0
            self.add((args, kwargs), out, amount, in_place=func._schema.is_mutable)

    def add(self, inputs: Any, out: Any, flops: int, in_place: bool = False) -> None:
        """Adds one operation, unless its outputs are views of its inputs."""
        read = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        known = {x.untyped_storage()._cdata for x in read}
        written = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if not in_place:
            written = [x for x in written if x.untyped_storage()._cdata not in known]
        if written:
            self.counts.kernels += 1
            self.counts.bytes += sum(_size(x) for x in (*read, *written))
            self.counts.flops += flops


class _Fused(TorchFunctionMode):
    def __init__(self, operations: _Counting) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in FUSED + ATTENTION or self.operations.inside_fused:
            return func(*args, **(kwargs or {}))
        self.operations.inside_fused = True
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self.operations.inside_fused = False
        flops = 0
        if func in ATTENTION:
            q, k, v = args[:3]
            flops = 2 * q.shape[:-1].numel() * k.shape[-2] * (k.shape[-1] + v.shape[-1])
        self.operations.add((args, kwargs), out, flops)
        return out


def _size(x: Tensor) -> int:
    """Bytes of a tensor; repeated elements of an expanded tensor count once."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, from now on; `known` and their views are not counted."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size
