"""The types in which this machine keeps weights and computes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

import comfy.utils
import torch
from comfy import model_management
from comfy.cli_args import args as cli_args
from torch import Tensor

from ...weights.components import DECODER, Kind
from ...weights.lazy_tensors import FP8, LazyTensor
from ...weights.precision import DEFAULT, LARGE, PRECISIONS, Precision
from ...weights.quantization import plain_tensors, quantized_layers
from ..compat import supports_fp64

# The decoder computes in these. Not in float16: the condition contains the language model's unnormed states, which
# overflow it.
DECODER_DTYPES = (torch.bfloat16, torch.float32)
WITHOUT_FLOAT8 = ("int8_tensorwise", "convrot_w4a4")  # formats that any device can dequantize
TEXT_FLAGS = ("fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc", "fp16_text_enc", "bf16_text_enc", "fp32_text_enc")


@dataclass(frozen=True)
class Dtypes:
    """Types of a network's weights and arithmetic on a device.

    precision       how the weights are kept
    weights         dtype of the weights that `precision` does not set
    compute         dtype of the arithmetic; None: that of the weights
    full_precision  quantized layers multiply in `compute`, whatever their quant configs say
    """

    device: torch.device
    precision: Precision
    weights: torch.dtype
    compute: torch.dtype | None
    full_precision: bool = False


def choose_dtypes(
    kind: Kind, tensors: Mapping[str, LazyTensor], precision: Precision = DEFAULT, device: torch.device | None = None
) -> Dtypes:
    """Types for the decoder or the text encoder, from the types of its tensors and the user's choice.

    device  None: ComfyUI's device for it

    Raises ValueError if the user chose a type that the device does not support.
    """
    plain, formats = plain_tensors(tensors), quantized_layers(tensors).values()
    found = {tensor.dtype for tensor in plain.values() if tensor.dtype.is_floating_point}
    if any(form not in WITHOUT_FLOAT8 for form in formats):
        found.add(FP8)
    if kind == DECODER:
        device = device or model_management.get_torch_device()
        precision = for_device(precision, found, device)
        small = {name: tensor.meta for name, tensor in plain.items() if not LARGE.search(name)}
        numbers = sum(tensor.meta.nelement() for tensor in tensors.values())
        return Dtypes(device, precision, *_decoder_dtypes(small, numbers, device, precision))
    device = device or model_management.text_encoder_device()
    # The language model's activations have outliers that 8 bits cannot represent.
    precision = replace(for_device(precision, found, device), fast=False)
    stored = tensors["llm.model.embed_tokens.weight"].dtype
    return Dtypes(device, precision, *text_dtypes(stored, device, precision), full_precision=True)


def for_device(precision: Precision, found: Set[torch.dtype], device: torch.device) -> Precision:
    """The precision for weights of the types `found`, with types that ComfyUI can cast on `device`.

    By default they stay as they are stored, or become bfloat16 or float32 if the device does not support their type.
    Raises ValueError if the user chose a type that it does not support.
    """
    if _castable(precision, found, device):
        return precision
    possible = [name for name, other in PRECISIONS.items() if other != DEFAULT and _castable(other, found, device)]
    if precision != DEFAULT:
        chosen = next(name for name, other in PRECISIONS.items() if other == precision)
        raise ValueError(
            f"weight_dtype: {chosen} is not supported on this device ({device.type}); choose default or one of "
            f"{', '.join(possible)}."
        )
    wide = wide_dtype(device)
    lacking = sorted(str(dtype) for dtype in _kept(precision, found) if not castable(dtype, device))
    _warn_of_wide(" and ".join(lacking), device, wide)
    return Precision(every=wide)


def castable(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether ComfyUI can cast weights of this type on `device`."""
    return supports_fp64(device) if dtype == torch.float64 else model_management.supports_cast(device, dtype)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The type for weights if the device does not support the type that they are stored in."""
    return torch.bfloat16 if castable(torch.bfloat16, device) else torch.float32


def _castable(precision: Precision, found: Set[torch.dtype], device: torch.device) -> bool:
    return all(castable(dtype, device) for dtype in _kept(precision, found))


def _kept(precision: Precision, found: Set[torch.dtype]) -> Set[torch.dtype]:
    """The types in which weights of the types `found` are kept."""
    if precision.every is not None:
        return {precision.every}
    return found if precision.large is None else found | {precision.large}


def _decoder_dtypes(
    small: Mapping[str, Tensor], numbers: int, device: torch.device, precision: Precision
) -> tuple[torch.dtype, torch.dtype | None]:
    """(dtype of the weights, dtype of the arithmetic or None); `small` are the tensors that are not large matrices."""
    dtype = precision.every or model_management.unet_dtype(
        model_params=numbers,
        supported_dtypes=list(DECODER_DTYPES),
        weight_dtype=comfy.utils.weight_dtype(small),
    )
    if not castable(dtype, device):
        _warn_of_wide(dtype, device, wide_dtype(device))
        dtype = wide_dtype(device)
    # On a GPU ComfyUI would compute in float16 if the weights are float16.
    stand_in = dtype if dtype in DECODER_DTYPES else torch.bfloat16
    compute = model_management.unet_manual_cast(stand_in, device, list(DECODER_DTYPES))
    return dtype, compute if stand_in is dtype else compute or stand_in


def text_dtypes(
    stored: torch.dtype, device: torch.device, precision: Precision = DEFAULT
) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of the weights, dtype of the arithmetic) for a text encoder on `device`.

    Weights stay as they are stored unless the precision or a command line flag asks for another type, or the weights
    are float32 and the device computes bfloat16. The arithmetic is never float16, because Qwen3's activations overflow
    it.
    """
    compute = torch.bfloat16 if model_management.should_use_bf16(device) else torch.float32
    if precision.every is not None:
        return precision.every, torch.float32 if precision.every == torch.float32 else compute
    if any(getattr(cli_args, flag) for flag in TEXT_FLAGS):
        chosen = model_management.text_encoder_dtype(device)
        if castable(chosen, device):
            return chosen, compute
        logging.warning(
            "Ovis-U1: the command line's text encoder type %s is not supported on this device (%s), so it is ignored; "
            "start ComfyUI without that option.",
            chosen,
            device.type,
        )
    if stored == torch.float32:
        return compute, compute
    return stored, compute


def _warn_of_wide(lacking: object, device: torch.device, wide: torch.dtype) -> None:
    logging.warning(
        "Ovis-U1: weights of type %s are not supported on this device (%s), so they are loaded as %s.",
        lacking,
        device.type,
        wide,
    )
