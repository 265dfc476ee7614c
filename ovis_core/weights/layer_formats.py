"""ComfyUI's formats of quantized layers: the tensors of a layer in a file, and checks.

Names and formats are those of newer versions of ComfyUI. The tensors of a layer have its name and a suffix. One of them
is JSON, the quant config, which names the format. `quantization.py` has the arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .safetensors_file import QUANT_CONFIG, CheckpointError, TensorEntry

WEIGHT = ".weight"
SCALE = ".weight_scale"  # factors for the stored weight
SCALE_2 = ".weight_scale_2"  # factor for the factors
OLDER_SCALE = ".scale_weight"  # the same as SCALE in older files and versions of ComfyUI
INPUT_SCALE = ".input_scale"  # for multiplication in the format: the divisor of the layer's input
SMOOTHING = ".pre_quant_scale"  # factors for the columns of the weight, which the layer applies to its input
FULL_PRECISION = "full_precision_matrix_mult"  # in a quant config: multiply in the type of the activations

Shape = tuple[int, ...]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _block_scales(rows: int, columns: int, block: int) -> Shape:
    """Shape of one scale for each block of a row, in the order in which GPUs read them."""
    return _round_up(rows, 128), _round_up(_round_up(columns, block) // block, 4)


@dataclass(frozen=True)
class Scale:
    """A tensor of scales.

    dtypes  that it may have, by their names in safetensors; the first is written
    shapes  that it may have for a matrix of (rows, columns); the first is written
    """

    dtypes: tuple[str, ...]
    shapes: Callable[[int, int], tuple[Shape, ...]]


@dataclass(frozen=True)
class Format:
    """How a format stores a matrix of (rows, columns).

    name                in quant configs
    dtypes              that the stored weight may have, by their names in safetensors; the first is written
    shape               of the stored weight, from rows and columns of the matrix
    scales              tensors of scales, by the suffix of their names
    kitchen_class       name of the class of comfy_kitchen that converts; empty: `quantization.py` does
    quantize_options    keyword arguments for the `quantize` of that class
    max_rotation_group  most columns that are rotated together before they are rounded; 0: none are
    column_multiple     a matrix is stored in this format only if its number of columns is a multiple of this
    """

    name: str
    dtypes: tuple[str, ...]
    shape: Callable[[int, int], Shape]
    scales: Mapping[str, Scale]
    kitchen_class: str = ""
    quantize_options: Mapping[str, Any] = field(default_factory=dict)
    max_rotation_group: int = 0
    column_multiple: int = 1


def _same(rows: int, columns: int) -> Shape:
    return rows, columns


FLOATS = ("F32", "BF16", "F16")
_ONE = Scale(FLOATS, lambda rows, columns: ((), (1,)))
FORMATS = {
    form.name: form
    for form in (
        Format("float8_e4m3fn", ("F8_E4M3",), _same, {SCALE: _ONE}),
        Format("float8_e5m2", ("F8_E5M2",), _same, {SCALE: _ONE}),
        Format(
            "mxfp8",
            ("F8_E4M3", "U8"),
            lambda rows, columns: (_round_up(rows, 32), _round_up(columns, 32)),
            {SCALE: Scale(("F8_E8M0", "U8"), lambda rows, columns: (_block_scales(rows, columns, 32),))},
            "TensorCoreMXFP8Layout",
        ),
        Format(
            "nvfp4",
            ("U8",),
            lambda rows, columns: (_round_up(rows, 16), _round_up(columns, 16) // 2),
            {SCALE: Scale(("F8_E4M3", "U8"), lambda rows, columns: (_block_scales(rows, columns, 16),)), SCALE_2: _ONE},
            "TensorCoreNVFP4Layout",
        ),
        Format(
            "int8_tensorwise",
            ("I8",),
            _same,
            {SCALE: Scale(FLOATS, lambda rows, columns: ((rows, 1), (), (1,)))},
            "TensorWiseINT8Layout",
            {"per_channel": True},
        ),
        Format(
            "convrot_w4a4",
            ("I8",),
            lambda rows, columns: (rows, columns // 2),
            {SCALE: Scale(FLOATS, lambda rows, columns: ((rows,),))},
            "TensorCoreConvRotW4A4Layout",
            max_rotation_group=256,
            column_multiple=64,
        ),
    )
}
FLOAT8_FORMATS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # by the weight's dtype; they have one scale
OPTIONAL_SCALES = {INPUT_SCALE: _ONE, SMOOTHING: Scale(FLOATS, lambda rows, columns: ((columns,),))}
QUANT_SUFFIXES = (SCALE, SCALE_2, QUANT_CONFIG, *OPTIONAL_SCALES)  # of a quantized layer's tensors except its weight


def quantized_entries(
    entries: Mapping[str, TensorEntry], shapes: Mapping[str, Shape], source: object
) -> dict[str, TensorEntry]:
    """The tensors of a component's quantized layers except their biases, by their newer names, with a quant config for
    each layer.

    shapes  of the component's tensors
    source  where the entries come from, for messages

    Raises `CheckpointError` for an unknown format, and for tensors that do not match it.
    """
    found = {}
    for name, shape in shapes.items():
        layer, weight = name.removesuffix(WEIGHT), entries.get(name)
        if not name.endswith(WEIGHT) or weight is None:
            continue
        scale = entries.get(layer + SCALE) or entries.get(layer + OLDER_SCALE)
        config = _quant_config(weight, entries.get(layer + QUANT_CONFIG), scale, source)
        if config is None:
            continue
        form = _format(config, source)
        if len(shape) != 2 or weight.dtype not in form.dtypes or weight.shape != form.shape(*shape):
            raise _mismatch(source, weight, form)
        for suffix, wanted in form.scales.items():
            entry = scale if suffix == SCALE else entries.get(layer + suffix)
            if entry is None:
                raise CheckpointError(
                    f"{source}: missing tensor {weight.name.removesuffix(WEIGHT)}{suffix}, which the format "
                    f"{form.name} needs; download or convert the model again."
                )
            found[layer + suffix] = _fitting(entry, wanted, shape, source, form)
        for suffix, wanted in OPTIONAL_SCALES.items():
            if layer + suffix in entries:
                found[layer + suffix] = _fitting(entries[layer + suffix], wanted, shape, source, form)
        found[layer + QUANT_CONFIG] = config
        found[name] = replace(weight, matrix=shape)
    return found


def _quant_config(
    weight: TensorEntry, config: TensorEntry | None, scale: TensorEntry | None, source: object
) -> TensorEntry | None:
    """The quant config of a layer; None if it is not quantized.

    Older files have only scales, and one of 1 for each layer that is not quantized. Newer versions of ComfyUI give
    each layer with a scale the format float8_e4m3fn, whatever its weight's dtype is. So for float8 the dtype decides.
    """
    if config is None:
        if scale is None or weight.dtype not in FLOAT8_FORMATS:
            return None
        return _config_entry(weight, {"format": FLOAT8_FORMATS[weight.dtype], FULL_PRECISION: True})
    form = _format(config, source)
    if form.name not in FLOAT8_FORMATS.values() or weight.dtype in form.dtypes:
        return config
    if weight.dtype in FLOAT8_FORMATS:
        return _config_entry(weight, json.loads(config.data or b"") | {"format": FLOAT8_FORMATS[weight.dtype]})
    return None if weight.dtype in FLOATS else config


def _fitting(entry: TensorEntry, wanted: Scale, shape: Shape, source: object, form: Format) -> TensorEntry:
    """The entry, if it fits a matrix of this shape."""
    if entry.dtype not in wanted.dtypes or entry.shape not in wanted.shapes(*shape):
        raise _mismatch(source, entry, form)
    return entry


def _mismatch(source: object, entry: TensorEntry, form: Format) -> CheckpointError:
    return CheckpointError(
        f"{source}: tensor {entry.name} has type {entry.dtype} and shape {list(entry.shape)}, which the format "
        f"{form.name} does not have; choose another file, or convert a bf16 file with scripts/convert.py."
    )


def _config_entry(weight: TensorEntry, config: Mapping[str, Any]) -> TensorEntry:
    data = json.dumps(config).encode()
    return TensorEntry(weight.name.removesuffix(WEIGHT) + QUANT_CONFIG, (len(data),), "U8", weight.file, data)


def _format(config: TensorEntry, source: object) -> Format:
    try:
        name = str(json.loads(config.data or b"")["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: tensor {config.name} does not name a format; download or convert the model again."
        ) from error
    if name not in FORMATS:
        layer = config.name.removesuffix(QUANT_CONFIG)
        raise CheckpointError(
            f"{source}: {layer}: expected one of the formats {', '.join(FORMATS)}, got {name[:40]}; choose another "
            "file."
        )
    return FORMATS[name]
