"""Unpack the weights of compressed-tensors, as vLLM and llm-compressor save them.

Integers of 2, 4 or 8 bits lie in int32, from the lowest bits on, each plus half of their range. Floats of 4 bits lie
in bytes, two in each: in NVFP4 with a float8 scale for a group of inputs and one for the tensor, by which the others
are divided, in MXFP4 with a power of two for a group. Of a sparse weight, such as one of 2:4, a file has the numbers
other than 0, row by row, and a bit for each place.
"""

import math
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.weights.non_weights import FLOAT8
from esdmon.weights.state.codes import BITS, powers_of_two, unpack_columns, unpack_fp4
from esdmon.weights.state.entries import Entry, State, computed_entry, unread_entry

_LAST = "weight_packed"
_BESIDE = {_LAST: "weight_scale", "compressed": "bitmask"}
"""Last part of a name -> that of the tensor beside it, without which it is none of compressed-tensors."""
_IN_A_ROW = 32  # codes to a multiple of which rows are filled up; earlier versions filled up one word
_GROUP_OF_EXPONENTS, _GROUP_OF_FLOATS = 32, 16  # inputs with one scale in MXFP4 and in NVFP4
_UNKNOWN = "numbers packed by compressed-tensors, in a layout that is not known: not read"


def entries_of_compressed_tensors(state: State) -> Iterator[Entry]:
    """Iterate over the weights of a state dict that compressed-tensors has packed."""
    for name, outline in state.outlines.items():
        last = name.rpartition(".")[2]
        prefix = name.removesuffix(last)
        beside = f"{prefix}{_BESIDE.get(last, '')}"
        if last not in _BESIDE or beside not in state.outlines:
            continue
        unpack = _sparse if last == "compressed" else _integers if outline.dtype == torch.int32 else _floats
        yield unpack(state, prefix) or unread_entry(state, f"{prefix}weight", (name, beside), _UNKNOWN)


def _integers(state: State, prefix: str) -> Entry | None:
    """Return (q − z)·s with the scale and the zero point of a row, or of a group of its inputs."""
    packed, scale, zeros = (f"{prefix}{last}" for last in (_LAST, "weight_scale", "weight_zero_point"))
    sides, scales = state.outlines[packed].shape, state.outlines[scale].shape
    shape = _whole_shape(state, f"{prefix}weight_shape")
    bits = _bits_of(shape[1], sides[1]) if len(shape) == len(sides) == 2 and shape[0] == sides[0] else 0
    if not bits or len(scales) != 2 or scales[0] not in (1, shape[0]) or not 0 < scales[1] <= shape[1]:
        return None
    if zeros in state.outlines and state.shape(zeros) != (math.ceil(scales[0] * bits / 32), scales[1]):
        return None
    order = f"{prefix}weight_g_idx" if state.shape(f"{prefix}weight_g_idx") == (shape[1],) else None

    def compute(packed: Tensor, scale: Tensor, zeros: Tensor | None, order: Tensor | None) -> Tensor:
        codes = unpack_columns(packed, bits)[:, : shape[1]]
        group = torch.arange(shape[1]) // math.ceil(shape[1] / scales[1])
        if order is not None and int(order.min()) >= 0:  # negative ones mean in order
            group = order.long()
        if int(group.max()) >= scales[1]:
            raise UnreadableError("skipped", _UNKNOWN)
        offsets: Tensor | int = 1 << (bits - 1)
        if zeros is not None:
            offsets = unpack_columns(zeros.T.contiguous(), bits).T[: scales[0], group]
        return (codes - offsets).float() * scale.float()[:, group]

    outline = torch.empty(shape, device="meta")
    return computed_entry(state, f"{prefix}weight", (packed, scale, zeros, order), compute, outline=outline)


def _whole_shape(state: State, name: str) -> tuple[int, ...]:
    """Return the sides of a weight from the tensor that has them; none without it."""
    if state.shape(name) not in ((2,), (2, 1)):
        return ()
    with suppress(Exception):  # damaged, or on the meta device: the weight is reported as one of an unknown layout
        rows, columns = map(int, state.read(name).flatten().tolist())
        return (rows, columns) if min(rows, columns) > 0 else ()
    return ()


def _bits_of(columns: int, words: int) -> int:
    """Return the bits of a code, by the words of a row; 0 where several would fit, or none."""
    fitting = [
        bits
        for bits in BITS
        if words in (math.ceil(columns * bits / 32), math.ceil(columns / _IN_A_ROW) * _IN_A_ROW * bits // 32)
    ]
    return fitting[0] if len(fitting) == 1 else 0


def _floats(state: State, prefix: str) -> Entry | None:
    """Return the code's number times the scale of its group."""
    packed, scale, whole = (f"{prefix}{last}" for last in (_LAST, "weight_scale", "weight_global_scale"))
    sides, groups, kind = state.outlines[packed].shape, state.outlines[scale].shape, state.outlines[scale].dtype
    is_exponent = kind == torch.uint8
    if len(sides) != 2 or state.outlines[packed].dtype != torch.uint8 or len(groups) != 2 or groups[0] != sides[0]:
        return None
    columns, size = 2 * sides[1], _GROUP_OF_EXPONENTS if is_exponent else _GROUP_OF_FLOATS
    if groups[1] * size != columns or not (is_exponent or (kind in FLOAT8 and whole in state.outlines)):
        return None  # such as floats of six bits

    def compute(packed: Tensor, scale: Tensor, whole: Tensor | None) -> Tensor:
        factors = scale.float() / whole.float() if whole is not None else powers_of_two(scale)
        return unpack_fp4(packed) * factors.repeat_interleave(size, dim=1)

    parts = (packed, scale, None if is_exponent else whole)
    outline = torch.empty(sides[0], columns, device="meta")
    return computed_entry(state, f"{prefix}weight", parts, compute, outline=outline)


def _sparse(state: State, prefix: str) -> Entry | None:
    """Return a weight with zeros where a bit is 0, of its other numbers, times the scale that small numbers have."""
    values, mask, scale = (f"{prefix}{last}" for last in ("compressed", "bitmask", "weight_scale"))
    shape, kind = _whole_shape(state, f"{prefix}shape"), state.outlines[values].dtype
    is_scaled = scale in state.outlines
    if not shape or state.shape(mask) != (shape[0], math.ceil(shape[1] / 8)) or is_scaled != (kind.itemsize == 1):
        return None
    if is_scaled and state.shape(scale) not in ((), (1,), (1, 1), (shape[0], 1)):
        return None

    def compute(values: Tensor, mask: Tensor, scale: Tensor | None) -> Tensor:
        bits = mask[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1
        places, numbers = bits.flatten(1)[:, : shape[1]].bool(), values.float().flatten()
        if int(places.sum()) != len(numbers):
            raise UnreadableError("skipped", _UNKNOWN)
        weight = torch.zeros(shape)
        weight[places] = numbers
        return weight if scale is None else weight * scale.float()

    outline = torch.empty(shape, device="meta")
    return computed_entry(state, f"{prefix}weight", (values, mask, scale), compute, outline=outline)
