"""Lazy tensors -> the layers of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ...weights.layer_formats import WEIGHT
from ...weights.lazy_tensors import LazyTensor


def fill(network: nn.Module, weights: Mapping[str, LazyTensor], assign: bool) -> None:
    """Loads weights by their names in the network. Each is read once.

    assign  the layers take the tensors themselves, which stay in their files until they are needed, as dynamic VRAM
            requires. Otherwise only persistent tensors of the layer's dtype are taken, and others are copied one by
            one, so that memory contains no more than the network
    """
    if assign:
        network.load_state_dict({name: tensor.read() for name, tensor in weights.items()}, strict=False, assign=True)
    else:
        _copy(network, weights)


def _copy(network: nn.Module, weights: Mapping[str, LazyTensor]) -> None:
    layers: dict[str, list[str]] = {}
    for name in weights:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    for layer, names in layers.items():
        module = network.get_submodule(layer)
        own = {f"{layer}.{name}".lstrip("."): parameter for name, parameter in module._parameters.items()}
        # A layer that makes its weight from the tensor would keep the file mapped.
        tensors = {name: _for_layer(name, weights[name], name in own) for name in names}
        stay = all(weights[name].persistent and _alike(tensors[name], own[name]) for name in names if name in own)
        how, errors = {"assign_to_params_buffers": stay}, list[str]()
        module._load_from_state_dict(tensors, f"{layer}." if layer else "", how, False, [], [], errors)
        if errors:
            raise RuntimeError("; ".join(errors))


def _for_layer(name: str, tensor: LazyTensor, copied: bool) -> Tensor:
    return tensor.read() if copied or (tensor.persistent and name.endswith(WEIGHT)) else tensor.read().clone()


def _alike(tensor: Tensor, parameter: Tensor) -> bool:
    return tensor.dtype == parameter.dtype and tensor.device == parameter.device
