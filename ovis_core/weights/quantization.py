"""Matrices <-> the tensors of a quantized layer, as lazy tensors.

Matrices are converted by the package comfy_kitchen, as in ComfyUI, and by this file for float8 with one scale, which
older versions of ComfyUI compute too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .layer_formats import (
    FORMATS,
    FULL_PRECISION,
    QUANT_SUFFIXES,
    SCALE,
    SCALE_2,
    SMOOTHING,
    WEIGHT,
    Format,
)
from .lazy_tensors import DTYPES, FP8, LazyTensor
from .safetensors_file import QUANT_CONFIG, CheckpointError
from .values import saturated

ROTATION_GROUPS = (16, 64, 256)  # numbers of columns that comfy_kitchen can rotate together


def quantized_layers(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Quantized layer -> name of its format."""
    return {
        name.removesuffix(QUANT_CONFIG): read_quant_config(tensor)["format"]
        for name, tensor in tensors.items()
        if name.endswith(QUANT_CONFIG)
    }


def read_quant_config(tensor: LazyTensor) -> dict[str, Any]:
    """The values in a layer's quant config."""
    return json.loads(tensor.read().numpy().tobytes())


def _config_tensor(config: Mapping[str, Any]) -> LazyTensor:
    return LazyTensor.of(torch.frombuffer(bytearray(json.dumps(config).encode()), dtype=torch.uint8))


def plain_tensors(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors that are not quantized, and the biases of layers that are."""
    layers = [name.removesuffix(QUANT_CONFIG) for name in tensors if name.endswith(QUANT_CONFIG)]
    owned = {layer + suffix for layer in layers for suffix in (WEIGHT, *QUANT_SUFFIXES)}
    return {name: tensor for name, tensor in tensors.items() if name not in owned}


def allow_quantized_matmul(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """These tensors with quant configs that let a GPU multiply in the layers' formats if it can."""
    changed = {
        name: _config_tensor({key: value for key, value in read_quant_config(tensor).items() if key != FULL_PRECISION})
        for name, tensor in tensors.items()
        if name.endswith(QUANT_CONFIG)
    }
    return {**tensors, **changed}


def add_unit_scales(tensors: Mapping[str, LazyTensor], multiply: bool) -> dict[str, LazyTensor]:
    """These tensors, with a scale of 1 and a quant config for each plain matrix in float8_e4m3fn. ComfyUI's layers for
    quantized weights would not keep it in 8 bits otherwise.

    multiply  in 8 bits too, on a GPU that can
    """
    found = dict(tensors)
    for name, tensor in plain_tensors(tensors).items():
        if tensor.dtype == FP8 and name.endswith(WEIGHT) and len(tensor.shape) == 2:
            layer, config = name.removesuffix(WEIGHT), {"format": "float8_e4m3fn"}
            found[name] = replace(tensor, matrix=tensor.shape)
            found[layer + SCALE] = LazyTensor.of(torch.ones(()))
            found[layer + QUANT_CONFIG] = _config_tensor(config if multiply else config | {FULL_PRECISION: True})
    return found


def dequantize(
    tensors: Mapping[str, LazyTensor], dtype: torch.dtype = torch.float32, layers: Iterable[str] | None = None
) -> dict[str, LazyTensor]:
    """These tensors with plain matrices in place of quantized ones.

    layers  that are changed; None: all

    Raises `CheckpointError` if a format needs the package comfy_kitchen and this Python does not have it.
    """
    kept, formats = dict(tensors), quantized_layers(tensors)
    for layer in formats if layers is None else layers:
        own = {suffix: kept.pop(layer + suffix) for suffix in (WEIGHT, *QUANT_SUFFIXES) if layer + suffix in kept}
        form = FORMATS[formats[layer]]
        layout = _kitchen(form) if form.kitchen_class else None
        kept[layer + WEIGHT] = replace(
            own[WEIGHT],
            shape=own[WEIGHT].matrix,
            matrix=None,
            dtype=dtype,
            read=partial(_read_matrix, form, own, layout, dtype),
            persistent=False,
        )
    return kept


def _read_matrix(form: Format, own: Mapping[str, LazyTensor], layout: Any, dtype: torch.dtype) -> Tensor:
    weight, config = own[WEIGHT].read(), read_quant_config(own[QUANT_CONFIG])
    rows, columns = own[WEIGHT].matrix
    if layout is None:
        matrix = weight.float() * own[SCALE].read().float()
    else:
        scale = own[SCALE].read()
        # Some files store 8-bit floats as bytes.
        if form.name == "mxfp8":
            weight, given = weight.view(FP8), {"scale": scale.view(torch.float8_e8m0fnu)}
        elif form.name == "nvfp4":
            given = {"scale": own[SCALE_2].read().float().reshape(()), "block_scale": scale.view(FP8)}
        else:
            given = {"scale": scale.float(), **_rotation(config)}
        params = layout.Params(orig_dtype=torch.float32, orig_shape=(rows, columns), **given)
        matrix = layout.dequantize(weight, params)[:rows, :columns]
    if SMOOTHING in own:
        matrix = matrix * own[SMOOTHING].read().float()
    return matrix.to(dtype)


def _rotation(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("params") or {}
    return {
        name: config.get(name, given.get(name))
        for name in ("convrot", "convrot_groupsize", "linear_dtype")
        if config.get(name, given.get(name)) is not None
    }


def quantize(name: str, weight: LazyTensor, form: Format) -> dict[str, LazyTensor]:
    """The tensors that a file stores for a matrix in this format; the matrix itself if its sides do not fit.

    Raises `CheckpointError` if the format needs the package comfy_kitchen and this Python does not have it.
    """
    rows, columns = weight.shape
    if columns % form.column_multiple:
        return {name: weight}
    layer, config = name.removesuffix(WEIGHT), {"format": form.name, FULL_PRECISION: True}
    if form.max_rotation_group:
        config["convrot_groupsize"] = max(
            size for size in ROTATION_GROUPS if columns % size == 0 and size <= form.max_rotation_group
        )
    made = _QuantizedMatrix(weight, form, _kitchen(form) if form.kitchen_class else None, _rotation(config))
    found = {layer + QUANT_CONFIG: _config_tensor(config)}
    for suffix, scale in form.scales.items():
        shape = scale.shapes(rows, columns)[0]
        found[layer + suffix] = LazyTensor(shape, DTYPES[scale.dtypes[0]], partial(made.read, suffix))
    stored = {"shape": form.shape(rows, columns), "dtype": DTYPES[form.dtypes[0]], "matrix": weight.shape}
    return {name: replace(weight, **stored, read=partial(made.read, WEIGHT), persistent=False), **found}


class _QuantizedMatrix:
    """The tensors that store a matrix. All are computed when the first is read, and each is dropped when it is read."""

    def __init__(self, weight: LazyTensor, form: Format, layout: Any, rotation: Mapping[str, Any]) -> None:
        self._weight, self._form, self._layout, self._rotation = weight, form, layout, rotation
        self._made: dict[str, Tensor] = {}

    def read(self, suffix: str) -> Tensor:
        if suffix not in self._made:
            self._made = self._quantize(self._weight.read().float())
        return self._made.pop(suffix)

    def _quantize(self, matrix: Tensor) -> dict[str, Tensor]:
        if self._layout is None:
            dtype = DTYPES[self._form.dtypes[0]]
            scale = _scale(matrix, dtype)
            return {WEIGHT: saturated(matrix / scale, dtype), SCALE: scale}
        data, params = self._layout.quantize(matrix, **self._form.quantize_options, **self._rotation)
        return {WEIGHT + end: tensor for end, tensor in self._layout.state_dict_tensors(data, params).items()}


def _scale(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The divisor that maps a matrix's largest value to the type's largest value."""
    largest = matrix.abs().max()
    return torch.where(largest > 0, largest / torch.finfo(dtype).max, 1.0)


def _kitchen(form: Format) -> Any:
    """The class of comfy_kitchen for a format."""
    try:
        from comfy_kitchen import tensor

        return vars(tensor)[form.kitchen_class]
    except (ImportError, KeyError) as error:
        raise CheckpointError(
            f"the format {form.name} needs the Python package comfy_kitchen, which newer versions of ComfyUI install; "
            "update ComfyUI, and run this with its Python."
        ) from error
