"""Layers whose weights are stored in fewer bits: their tensors in a file, and the arithmetic.

Names and formats are those of newer ComfyUIs. The tensors of a layer have its name and a suffix; its mark is JSON that
names its format. Matrices are converted by the package comfy_kitchen, as in ComfyUI, and by this file for float8
with one scale, which older ComfyUIs compute too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .lazy_tensors import DTYPES, LazyTensor, saturated
from .safetensors_file import QUANTIZED_MARK as MARK
from .safetensors_file import CheckpointError, TensorEntry

WEIGHT = ".weight"
SCALE = ".weight_scale"  # factors for the stored weight
SCALE_2 = ".weight_scale_2"  # factor for the factors
OLDER_SCALE = ".scale_weight"  # the same as SCALE in older files and ComfyUIs
INPUT_SCALE = ".input_scale"  # for multiplication in the format: the divisor of the layer's input
SMOOTHING = ".pre_quant_scale"  # factors for the columns of the weight, which the layer applies to its input
ONLY_WEIGHT = "full_precision_matrix_mult"  # in a mark: multiply in the type of the activations
FP8 = torch.float8_e4m3fn
GROUPS = (16, 64, 256)  # numbers of columns that comfy_kitchen can rotate together

Shape = tuple[int, ...]


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _blocks(rows: int, columns: int, block: int) -> Shape:
    """Shape of one scale for each block of a row, in the order in which GPUs read them."""
    return _up(rows, 128), _up(_up(columns, block) // block, 4)


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

    name     in marks
    dtypes   that the stored weight may have, by their names in safetensors; the first is written
    shape    of the stored weight
    scales   by suffix
    layout   class of comfy_kitchen; empty: this file computes it
    options  for its `quantize`
    rotated  columns that are rotated together before they are rounded, at most; 0: none
    divides  a matrix whose columns are not a multiple of this is not stored in this format
    """

    name: str
    dtypes: tuple[str, ...]
    shape: Callable[[int, int], Shape]
    scales: Mapping[str, Scale]
    layout: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    rotated: int = 0
    divides: int = 1


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
            lambda rows, columns: (_up(rows, 32), _up(columns, 32)),
            {SCALE: Scale(("F8_E8M0", "U8"), lambda rows, columns: (_blocks(rows, columns, 32),))},
            "TensorCoreMXFP8Layout",
        ),
        Format(
            "nvfp4",
            ("U8",),
            lambda rows, columns: (_up(rows, 16), _up(columns, 16) // 2),
            {SCALE: Scale(("F8_E4M3", "U8"), lambda rows, columns: (_blocks(rows, columns, 16),)), SCALE_2: _ONE},
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
            rotated=256,
            divides=64,
        ),
    )
}
SCALED = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # formats of weights with a scale and without a mark
OPTIONAL = {INPUT_SCALE: _ONE, SMOOTHING: Scale(FLOATS, lambda rows, columns: ((columns,),))}
TENSORS = (SCALE, SCALE_2, MARK, *OPTIONAL)  # of a quantized layer, beside its weight


# ---- the tensors of a file


def quantized_entries(
    entries: Mapping[str, TensorEntry], shapes: Mapping[str, Shape], source: object
) -> dict[str, TensorEntry]:
    """The tensors of a component's quantized layers but for their biases, by their newer names; a layer without a mark
    gets one.

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
        mark = entries.get(layer + MARK)
        if mark is None:
            # Older ComfyUIs also write a scale of 1 for layers that are not quantized.
            if scale is None or weight.dtype not in SCALED:
                continue
            mark = _mark_entry(weight, {"format": SCALED[weight.dtype], ONLY_WEIGHT: True})
        form = _format(mark, source)
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
        for suffix, wanted in OPTIONAL.items():
            if layer + suffix in entries:
                found[layer + suffix] = _fitting(entries[layer + suffix], wanted, shape, source, form)
        found[layer + MARK] = mark
        found[name] = replace(weight, matrix=shape)
    return found


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


def _mark_entry(weight: TensorEntry, mark: Mapping[str, Any]) -> TensorEntry:
    data = json.dumps(mark).encode()
    return TensorEntry(weight.name.removesuffix(WEIGHT) + MARK, (len(data),), "U8", weight.file, data)


def _format(mark: TensorEntry, source: object) -> Format:
    try:
        name = str(json.loads(mark.data or b"")["format"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: tensor {mark.name} does not name a format; download or convert the model again."
        ) from error
    if name not in FORMATS:
        raise CheckpointError(
            f"{source}: {mark.name.removesuffix(MARK)}: expected one of the formats {', '.join(FORMATS)}, got "
            f"{name[:40]}; choose another file."
        )
    return FORMATS[name]


# ---- lazy tensors


def quantized_layers(tensors: Mapping[str, LazyTensor]) -> dict[str, str]:
    """Quantized layer -> name of its format."""
    return {
        name.removesuffix(MARK): read_mark(tensor)["format"] for name, tensor in tensors.items() if name.endswith(MARK)
    }


def read_mark(tensor: LazyTensor) -> dict[str, Any]:
    """The settings in a layer's mark."""
    return json.loads(tensor.read().numpy().tobytes())


def _mark(settings: Mapping[str, Any]) -> LazyTensor:
    return LazyTensor.of(torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8))


def unquantized(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors that do not belong to quantized layers; biases do not count as belonging to them."""
    layers = quantized_layers(tensors)
    owned = {layer + suffix for layer in layers for suffix in (WEIGHT, *TENSORS)}
    return {name: tensor for name, tensor in tensors.items() if name not in owned}


def multiplying(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """These tensors with marks that let a GPU which can multiply in the layers' formats."""
    changed = {
        name: _mark({key: value for key, value in read_mark(tensor).items() if key != ONLY_WEIGHT})
        for name, tensor in tensors.items()
        if name.endswith(MARK)
    }
    return {**tensors, **changed}


def scaled_by_one(tensors: Mapping[str, LazyTensor], multiply: bool) -> dict[str, LazyTensor]:
    """These tensors, with plain matrices in float8_e4m3fn as quantized ones. ComfyUI's layers for quantized weights do
    not keep plain ones in 8 bits.

    multiply  in 8 bits too, on a GPU that can
    """
    found = dict(tensors)
    for name, tensor in unquantized(tensors).items():
        if tensor.dtype == FP8 and name.endswith(WEIGHT) and len(tensor.shape) == 2:
            layer, settings = name.removesuffix(WEIGHT), {"format": "float8_e4m3fn"}
            found[name] = replace(tensor, matrix=tensor.shape)
            found[layer + SCALE] = LazyTensor.of(torch.ones(()))
            found[layer + MARK] = _mark(settings if multiply else settings | {ONLY_WEIGHT: True})
    return found


def dequantized(
    tensors: Mapping[str, LazyTensor], dtype: torch.dtype = torch.float32, layers: Iterable[str] | None = None
) -> dict[str, LazyTensor]:
    """These tensors with plain matrices in place of quantized ones.

    layers  that are changed; None: all

    Raises `CheckpointError` if a format needs the package comfy_kitchen and this Python does not have it.
    """
    kept, formats = dict(tensors), quantized_layers(tensors)
    for layer in formats if layers is None else layers:
        own = {suffix: kept.pop(layer + suffix) for suffix in (WEIGHT, *TENSORS) if layer + suffix in kept}
        form = FORMATS[formats[layer]]
        layout = _kitchen(form) if form.layout else None
        kept[layer + WEIGHT] = replace(
            own[WEIGHT],
            shape=own[WEIGHT].matrix,
            matrix=None,
            dtype=dtype,
            read=partial(_read_dequantized, form, own, layout, dtype),
            persistent=False,
        )
    return kept


def _read_dequantized(form: Format, own: Mapping[str, LazyTensor], layout: Any, dtype: torch.dtype) -> Tensor:
    weight, settings = own[WEIGHT].read(), read_mark(own[MARK])
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
            given = {"scale": scale.float(), **_rotation(settings)}
        params = layout.Params(orig_dtype=torch.float32, orig_shape=(rows, columns), **given)
        matrix = layout.dequantize(weight, params)[:rows, :columns]
    if SMOOTHING in own:
        matrix = matrix * own[SMOOTHING].read().float()
    return matrix.to(dtype)


def _rotation(settings: Mapping[str, Any]) -> dict[str, Any]:
    given = settings.get("params") or {}
    return {
        name: settings.get(name, given.get(name))
        for name in ("convrot", "convrot_groupsize", "linear_dtype")
        if settings.get(name, given.get(name)) is not None
    }


def quantized(name: str, weight: LazyTensor, form: Format) -> dict[str, LazyTensor]:
    """The tensors that a file stores for a matrix in this format; the matrix itself if its sides do not fit.

    Raises `CheckpointError` if the format needs the package comfy_kitchen and this Python does not have it.
    """
    rows, columns = weight.shape
    if columns % form.divides:
        return {name: weight}
    layer, settings = name.removesuffix(WEIGHT), {"format": form.name, ONLY_WEIGHT: True}
    if form.rotated:
        settings["convrot_groupsize"] = max(size for size in GROUPS if columns % size == 0 and size <= form.rotated)
    quantize = _Quantized(weight, form, _kitchen(form) if form.layout else None, _rotation(settings))
    found = {layer + MARK: _mark(settings)}
    for suffix, scale in form.scales.items():
        shape = scale.shapes(rows, columns)[0]
        found[layer + suffix] = LazyTensor(shape, DTYPES[scale.dtypes[0]], partial(quantize.read, suffix))
    stored = {"shape": form.shape(rows, columns), "dtype": DTYPES[form.dtypes[0]], "matrix": weight.shape}
    return {name: replace(weight, **stored, read=partial(quantize.read, WEIGHT), persistent=False), **found}


class _Quantized:
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
        data, params = self._layout.quantize(matrix, **self._form.options, **self._rotation)
        return {WEIGHT + end: tensor for end, tensor in self._layout.state_dict_tensors(data, params).items()}


def _scale(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The divisor that maps a matrix's largest value to the type's largest value."""
    largest = matrix.abs().max()
    return torch.where(largest > 0, largest / torch.finfo(dtype).max, 1.0)


def _kitchen(form: Format) -> Any:
    """The class of comfy_kitchen for a format."""
    try:
        from comfy_kitchen import tensor

        return vars(tensor)[form.layout]
    except (ImportError, KeyError) as error:
        raise CheckpointError(
            f"the format {form.name} needs the Python package comfy_kitchen, which newer versions of ComfyUI install; "
            "update ComfyUI, and run this with its Python."
        ) from error
