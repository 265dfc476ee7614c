"""The language model's KV cache: keys and values of past positions, preallocated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..weights.config import LanguageConfig
from .attention import causal_attention
from .rotary import line_tables

KeysAndValues = tuple[Tensor, Tensor]  # each (layers, key-value heads, n, head)


class KVCache:
    """Keys and values (layers, key-value heads, capacity, head) of one sequence, with the rotary tables for it.

    length    positions that are filled
    capacity  positions that fit
    """

    def __init__(self, config: LanguageConfig, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, because `attend_at` multiplies the values of positions that are not filled yet by 0.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.cos, self.sin = line_tables(capacity, config.head_dim, config.rope_theta, device)
        self.capacity = capacity
        self.length = 0

    @staticmethod
    def bytes_needed(config: LanguageConfig, capacity: int, dtype: torch.dtype) -> int:
        """Bytes of a cache with this capacity, its rotary tables included."""
        heads = config.num_hidden_layers * config.num_key_value_heads * dtype.itemsize
        return 2 * capacity * config.head_dim * (heads + 4)

    def append(self, keys: Tensor, values: Tensor) -> None:
        """Adds positions computed earlier, (layers, key-value heads, n, head), from any device."""
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys.to(self.keys.device)
        self.values[:, :, self.length : end] = values.to(self.values.device)
        self.length = end

    def copy(self, start: int, end: int) -> KeysAndValues:
        """Keys and values of positions start to end, in RAM."""
        return self.keys[:, :, start:end].to("cpu", copy=True), self.values[:, :, start:end].to("cpu", copy=True)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the next n positions, (1, heads, n, head) -> (1, n, heads * head); stores their k and v.

        `length` does not change, because every layer writes at the same positions.
        """
        keys, values, end = self.keys[layer, None], self.values[layer, None], self.length + q.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        keys, values = keys[:, :, :end], values[:, :, :end]
        if q.shape[2] == 1:
            # The query heads that share a key head are treated like positions: each of them attends to every key.
            x = F.scaled_dot_product_attention(q.reshape(1, k.shape[1], -1, q.shape[3]), keys, values)
            return x.reshape(1, 1, -1)
        return causal_attention(q, keys, values)

    def attend_at(self, position: Tensor, future: Tensor, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attend` of one position, given as a tensor on the device: the same kernels for every position.

        position  (1,) int64
        future    (capacity,) bool, True from position + 1 on
        """
        keys = self.keys[layer].index_copy_(1, position, k[0])
        values = self.values[layer].index_copy_(1, position, v[0])
        q = q.reshape(k.shape[1], -1, q.shape[3])
        scores = _product(q, keys.transpose(1, 2)) * q.shape[2] ** -0.5
        weights = scores.masked_fill_(future, -torch.inf).softmax(dim=-1)
        return torch.bmm(weights.to(values.dtype), values).reshape(1, 1, -1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a @ b in float32; the result is not rounded to the type of a and b if torch supports that."""
    if a.is_cuda and a.dtype != torch.float32 and _has_wide_products():
        return torch.bmm(a, b, out_dtype=torch.float32)
    return torch.bmm(a, b).float()


def _has_wide_products() -> bool:
    return torch.version.hip is None and "dtype" in torch.ops.aten.bmm.overloads()
