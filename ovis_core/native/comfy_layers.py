"""ComfyUI's layers for the networks, and access to a layer's cast weight."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.ldm.flux.math as flux
import comfy.ops
import torch
from comfy import model_management
from comfy.cli_args import args
from comfy.ldm.modules.attention import attention_pytorch, attention_sub_quad
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ..networks.layers import Layers
from ..networks.rotary import rotate_pairs
from ..weights.lazy_tensors import LazyTensor
from ..weights.quantized import (
    FP8,
    MARK,
    OLDER_SCALE,
    OPTIONAL,
    SCALE,
    SCALE_2,
    SMOOTHING,
    WEIGHT,
    quantized_layers,
    scaled_by_one,
)
from ..weights.safetensors_file import CheckpointError
from .compat import (
    mixed_operations,
    quantized_formats,
    resident_weight,
    rotates_in_one_kernel,
    scaled_fp8_operations,
)
from .dtypes import Dtypes


def comfy_layers(operations: Any, dtype: torch.dtype | None, device: Any) -> Layers:
    """`Layers` of one of ComfyUI's `operations`."""
    return Layers(operations, attention, cast_weight, dtype, device)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pe: Tensor | None,
    mask: Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
) -> Tensor:
    """`networks.attention.Attention` with ComfyUI's attention function, which flags, packs and nodes may choose.

    On a CPU torch's function is used unless a flag chooses another one: ComfyUI's default there is several times
    slower.
    """
    if pe is not None:
        if _rotates_in_one_kernel(q, k, pe):
            q, k = flux.apply_rope(q, k, pe)
        else:
            q, k = rotate_pairs(q, pe), rotate_pairs(k, pe)
    chosen = flux.optimized_attention
    if q.device.type == "cpu" and chosen is attention_sub_quad and not args.use_quad_cross_attention:
        chosen = attention_pytorch
    return chosen(q, k, v, q.shape[1], mask=mask, skip_reshape=True, transformer_options=transformer_options or {})


def _rotates_in_one_kernel(q: Tensor, k: Tensor, pe: Tensor) -> bool:
    # A compiler fuses our rotation with the operations around it, which it cannot do with ComfyUI's kernel. If ComfyUI
    # has no kernel for the device, the types or the version of CUDA, its rotation takes more steps than ours.
    return q.is_cuda and not torch.compiler.is_compiling() and rotates_in_one_kernel(q, k, pe)


@contextmanager
def cast_weight(layer: nn.Module, like: Tensor) -> Iterator[Tensor]:
    """A layer's weight on the device and in the dtype of `like`, with its patches.

    Use one weight at a time: ComfyUI may write the next one to the same memory.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
    try:
        yield weight
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


@contextmanager
def pinned(network: nn.Module, like: Tensor) -> Iterator[bool]:
    """Whether all weights of `network` are on the device of `like`, and stay there until the context ends.

    With dynamic VRAM a weight is pinned while it is cast. False for weights that are offloaded, or patched at each use.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, comfy.ops.CastWeightBiasOp)]
    with ExitStack() as stack:
        whole = all(stack.enter_context(_pinned(layer, like)) for layer in layers)
        if not whole:
            stack.close()
        yield whole


@contextmanager
def _pinned(layer: nn.Module, like: Tensor) -> Iterator[bool]:
    # A cast to the weight's own dtype does not copy it.
    resident = resident_weight(layer)
    dtype = (layer.weight if resident is None else resident).dtype
    with cast_weight(layer, like.new_empty(0, dtype=dtype)) as weight:
        yield weight is layer.weight or weight is resident_weight(layer)


def quantized_operations(tensors: Mapping[str, LazyTensor], dtypes: Dtypes) -> tuple[Any, Mapping[str, LazyTensor]]:
    """ComfyUI's layers for quantized weights, and the tensors by these layers' names; None without such weights.

    Raises `CheckpointError` for a format that this ComfyUI does not have.
    """
    layers = quantized_layers(tensors)
    if not layers:
        return None, tensors
    offered = quantized_formats()
    for layer, form in layers.items():
        if form not in offered:
            name = form
        elif layer + SMOOTHING in tensors and SMOOTHING not in offered[form]:
            name = f"{form} with pre_quant_scale"
        else:
            continue
        raise CheckpointError(
            f"{tensors[layer + WEIGHT].file or 'the file'}: weights are stored in the format {name}, which this "
            "ComfyUI does not have; update ComfyUI, or convert the original weights to bf16 or fp8_scaled "
            "(scripts/convert.py)."
        )
    older = scaled_fp8_operations()
    if older is None:
        operations = _adapted(mixed_operations(dtypes.weights, dtypes.device, dtypes.only_weights))
        return operations, scaled_by_one(tensors, dtypes.precision.fast)
    multiply = dtypes.precision.fast and model_management.supports_fp8_compute(dtypes.device)
    renamed = {
        n.replace(SCALE, OLDER_SCALE): tensor for n, tensor in tensors.items() if not n.endswith((MARK, *OPTIONAL))
    }
    return older(fp8_matrix_mult=multiply, scale_input=False), renamed


def _adapted(operations: Any) -> Any:
    """Layers that also have the tensors of their state dict as attributes, where hooks and merges look for them, and
    that dequantize every format whose mark asks for it.
    """

    class Linear(operations.Linear):
        def _forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            # Otherwise ComfyUI multiplies formats of integers in integers.
            if self._full_precision_mm and isinstance(weight, QuantizedTensor):
                weight = weight.dequantize()
            return super()._forward(input, weight, bias)

        def set_weight(self, weight: Tensor, inplace_update: bool = False, **options: Any) -> Any:
            if inplace_update and not options.get("return_weight"):  # by hooks
                raise ValueError(
                    "hooks: ComfyUI cannot apply hooks to quantized weights; set weight_dtype to bf16 in Ovis-U1 Load "
                    "Model, or use Load LoRA instead of the hook."
                )
            return super().set_weight(weight, inplace_update=inplace_update, **options)

        def __getattr__(self, name: str) -> Any:
            if f".{name}" in (SCALE, SCALE_2, MARK) and "layout_type" in self.__dict__:
                found = self.state_dict()
                if name in found:
                    return found[name]
            return super().__getattr__(name)

    operations.Linear = Linear
    return operations


def prepare(network: nn.Module, eight_bit: Collection[str]) -> None:
    """Prepares layers, by their names, for plain weights in 8 bits, which they cast at each use."""
    for name in eight_bit:
        layer = network.get_submodule(name)
        layer.comfy_cast_weights = True
        layer.weight_comfy_model_dtype = FP8  # dtype in which dynamic VRAM keeps it
        # With dynamic VRAM there is no weight yet.
        if layer.weight is not None:
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=FP8), requires_grad=False)


def keep_patchable(patcher: ModelPatcher) -> None:
    """Lets a partial load after a full one patch every layer, for this patcher and its clones.

    A patcher whose compute dtype was set (`force_cast_weights`) marks the layers that it loads completely like those
    that it leaves in RAM. The mark stays after unloading, and the next partial load skips marked layers and their
    patches.
    """
    patcher.add_callback(CallbacksMP.ON_LOAD, _unmark_whole_layers)
    _unmark_whole_layers(patcher)


def loaded_whole(layer: nn.Module) -> bool:
    """Whether ComfyUI has loaded a layer completely, and not left its weights in RAM."""
    return getattr(layer, "comfy_patched_weights", False)


def _unmark_whole_layers(patcher: ModelPatcher, *loading: Any) -> None:
    for layer in patcher.model.modules():
        if not loaded_whole(layer):
            continue
        if hasattr(layer, "prev_comfy_cast_weights"):
            layer.__dict__.setdefault("ovis_u1_casts", layer.prev_comfy_cast_weights)
            del layer.prev_comfy_cast_weights
        elif hasattr(layer, "ovis_u1_casts"):
            # The layer's state without the compute dtype.
            layer.comfy_cast_weights = layer.__dict__.pop("ovis_u1_casts")
