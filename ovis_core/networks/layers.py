"""The factory from which the networks get their layers and attention: torch's own, or ComfyUI's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, torch_attention

# (layer, a tensor) -> the layer's weight on the tensor's device and in its dtype, valid within the context.
CastWeight = Callable[[nn.Module, Tensor], AbstractContextManager[Tensor]]


@contextmanager
def own_weight(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """`CastWeight` of torch's own layers."""
    yield layer.weight.to(like.device, like.dtype)


@dataclass(frozen=True)
class Layers:
    """Makes layers with weights.

    operations  namespace with Linear, LayerNorm, RMSNorm, Embedding and Conv2d: torch's own or one of ComfyUI's, which
                cast, offload and patch their weights
    attention   function that the networks attend with
    cast_weight gives access to a layer's weight outside the layer
    dtype       of the weights; None is torch's default
    device      of the weights; None is torch's default
    """

    operations: Any = torch.nn
    attention: Attention = torch_attention
    cast_weight: CastWeight = own_weight
    dtype: torch.dtype | None = None
    device: torch.device | str | None = None

    def linear(self, into: int, out: int, bias: bool = True) -> nn.Module:
        """(..., into) -> (..., out)."""
        return self.operations.Linear(into, out, bias=bias, **self._place())

    def layer_norm(self, dim: int, eps: float) -> nn.Module:
        """LayerNorm over the last dimension, with weight and bias."""
        return self.operations.LayerNorm(dim, eps=eps, **self._place())

    def rms_norm(self, dim: int, eps: float) -> nn.Module:
        """RMS norm over the last dimension."""
        return self.operations.RMSNorm(dim, eps=eps, **self._place())

    def embedding(self, rows: int, dim: int) -> nn.Module:
        """Ids -> (..., dim)."""
        return self.operations.Embedding(rows, dim, **self._place())

    def patch_convolution(self, channels: int, out: int, patch: int) -> nn.Module:
        """(N, channels, patch * h, patch * w) -> (N, out, h, w)."""
        return self.operations.Conv2d(channels, out, kernel_size=patch, stride=patch, **self._place())

    def parameter(self, *shape: int) -> nn.Parameter:
        """A bare weight, not initialized. No layer casts it: move it to the input's device and dtype at each use."""
        return nn.Parameter(torch.empty(*shape, **self._place()), requires_grad=False)

    def _place(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "device": self.device}
