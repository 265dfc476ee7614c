"""ComfyUI's layers for weights in 8 bits or fewer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from comfy import model_management
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...weights.layer_formats import OLDER_SCALE, OPTIONAL_SCALES, SCALE, SCALE_2, SMOOTHING, WEIGHT
from ...weights.lazy_tensors import FP8, LazyTensor
from ...weights.quantization import add_unit_scales, quantized_layers
from ...weights.safetensors_file import QUANT_CONFIG, CheckpointError
from ..compat import mixed_operations, quantized_formats, scaled_fp8_operations
from .dtypes import Dtypes


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
        operations = mixed_operations(dtypes.weights, dtypes.device, dtypes.full_precision)
        operations = _adapted(operations, dtypes.full_precision)
        return operations, add_unit_scales(tensors, dtypes.precision.fast)
    multiply = dtypes.precision.fast and model_management.supports_fp8_compute(dtypes.device)
    renamed = {
        n.replace(SCALE, OLDER_SCALE): tensor
        for n, tensor in tensors.items()
        if not n.endswith((QUANT_CONFIG, *OPTIONAL_SCALES))
    }
    return older(fp8_matrix_mult=multiply, scale_input=False), renamed


def _adapted(operations: Any, full_precision: bool) -> Any:
    """Layers that also have the tensors of their state dict as attributes, where hooks and merges look for them, and
    that dequantize every format whose quant config asks for it.

    full_precision  dequantize every format
    """

    class Linear(operations.Linear):
        def _forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            # Otherwise ComfyUI multiplies formats of integers in integers.
            if self._full_precision_mm and isinstance(weight, QuantizedTensor):
                weight = weight.dequantize()
            return super()._forward(input, weight, bias)

        def can_use_quantized_matmul(self, disabled_formats: Collection[str]) -> bool:
            # Versions of ComfyUI after 0.33 ask before they turn off `_full_precision_mm` while text is generated.
            return not full_precision and super().can_use_quantized_matmul(disabled_formats)

        def set_weight(self, weight: Tensor, inplace_update: bool = False, **options: Any) -> Any:
            if inplace_update and not options.get("return_weight"):  # by hooks
                raise ValueError(
                    "hooks: ComfyUI cannot apply hooks to quantized weights; set weight_dtype to bf16 in Ovis-U1 Load "
                    "Model, or use Load LoRA instead of the hook."
                )
            return super().set_weight(weight, inplace_update=inplace_update, **options)

        def __getattr__(self, name: str) -> Any:
            if f".{name}" in (SCALE, SCALE_2, QUANT_CONFIG) and "layout_type" in self.__dict__:
                found = self.state_dict()
                if name in found:
                    return found[name]
            return super().__getattr__(name)

    operations.Linear = Linear
    return operations


def make_fp8_layers(network: nn.Module, names: Collection[str]) -> None:
    """Lets layers have plain weights in 8 bits, which they cast at each use."""
    for name in names:
        layer = network.get_submodule(name)
        layer.comfy_cast_weights = True
        layer.weight_comfy_model_dtype = FP8  # dtype in which dynamic VRAM keeps it
        # With dynamic VRAM there is no weight yet.
        if layer.weight is not None:
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=FP8), requires_grad=False)
