"""Unpack weights that files store as packed numbers.

GPTQ and AWQ: int32 with several codes in each, scales and zero points by group. bitsandbytes: 4-bit codes that index a
table, scaled by block, or int8 rows. Others: int8 or float8 with a scale for the tensor, for rows or for blocks, and
float8 without a scale in the file, whose values are used directly.
"""

import json
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from esdmon.errors import UnreadableError
from esdmon.weights.non_weights import FLOAT8
from esdmon.weights.state.codes import BITS, UNKNOWN, powers_of_two, unpack_columns
from esdmon.weights.state.entries import Entry, State, computed_entry, unread_entry

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # place of each output in an int32 of 4-bit codes
_NF4 = ".quant_state.bitsandbytes__"
_SCALES = ("_scale_inv", "_scale", ".scale")
_BLOCK = 128  # of float8 weights, where the configuration does not say it


def packed_entries(state: State) -> Iterator[Entry]:
    """Iterate over the packed weights of a state dict."""
    is_plain = not any(_scale_of(state, name) for name, outline in state.outlines.items() if outline.dtype in FLOAT8)
    for name, outline in state.outlines.items():
        path, _, last = name.rpartition(".")
        prefix = f"{path}." if path else ""
        if last == "qweight" and f"{prefix}scales" in state.outlines:
            yield _grouped(state, prefix)
        elif last == "qdata" and f"{prefix}scale" in state.outlines:
            yield _scaled(state, path, name, f"{prefix}scale", zero=f"{prefix}zero_point")
        elif last == "_data" and f"{prefix}_scale" in state.outlines:  # of quanto
            is_whole = outline.dtype == torch.int8 or outline.dtype in FLOAT8
            scale = f"{prefix}_scale"
            yield _scaled(state, path, name, scale, zero="") if is_whole else _unread(state, path, name)
        elif _NF4 in name:
            yield _four_bits(state, name.partition(_NF4)[0], name)
        elif last.endswith("weight") and _is_small(outline):
            yield from _with_scales(state, name, prefix)
            if is_plain and outline.dtype in FLOAT8:
                yield computed_entry(state, name, (name,), Tensor.float)


def _is_small(outline: Tensor) -> bool:
    return outline.dtype.itemsize == 1 and outline.dtype != torch.bool and outline.ndim > 1


def _with_scales(state: State, name: str, prefix: str) -> Iterator[Entry]:
    for key in (f"{prefix}SCB", f"{name}.SCB"):
        if key in state.outlines:
            yield computed_entry(state, name, (name, key), _by_rows)
            return
    scale = _scale_of(state, name)
    is_fp4 = f"{name}_scale_2" in state.outlines or state.outlines[name].dtype == torch.uint8
    if scale and not is_fp4:
        yield _scaled(state, name, name, scale, zero=f"{name}_zero_point")


def _scale_of(state: State, name: str) -> str:
    """Return the name of the scale of a weight; empty for a weight that has none."""
    keys = [*(f"{name}{suffix}" for suffix in _SCALES), f"{name.removesuffix('weight')}scale_weight"]
    return next((key for key in keys if key in state.outlines), "")


def _by_rows(codes: Tensor, largest: Tensor) -> Tensor:
    """Return q·m/127, with the largest absolute value m of each row."""
    return codes.float() * (largest.float()[:, None] / 127)


def _unread(state: State, name: str, part: str) -> Entry:
    return unread_entry(state, name, (part,), UNKNOWN)


def _scaled(state: State, name: str, codes: str, scale: str, *, zero: str) -> Entry:
    """Return q·s, or (q − z)·s, with a scale for the tensor, for each row, or for each block."""
    shape, sides = state.outlines[codes].shape, state.outlines[scale].shape
    if any(side > whole for side, whole in zip(sides, shape, strict=False)) or len(sides) > len(shape):
        return _unread(state, name, codes)
    if 1 < len(sides) < len(shape) and any(side not in (1, whole) for side, whole in zip(sides, shape, strict=False)):
        return _unread(state, name, codes)
    is_exponent = state.outlines[scale].dtype == torch.uint8 and state.outlines[codes].dtype in FLOAT8
    blocks = _block_sizes(state, shape, sides)
    if 0 in blocks or not (is_exponent or state.outlines[scale].is_floating_point()):
        return _unread(state, name, codes)

    def compute(numbers: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
        values = numbers.float()
        if zeros is not None:
            values = values - _spread(zeros.float(), values.shape, blocks)
        factors = powers_of_two(scales) if is_exponent else scales.float()
        return values * _spread(factors, values.shape, blocks)

    return computed_entry(state, name, (codes, scale, zero if state.shape(zero) == sides else None), compute)


def _block_sizes(state: State, shape: torch.Size, sides: torch.Size) -> tuple[int, ...]:
    """Return the size of a block along each side, from the number of blocks; 0 if it does not follow from that."""
    given = state.settings("quantization_config").get("weight_block_size")
    given = given if isinstance(given, list) and len(given) <= len(shape) else [_BLOCK] * len(shape)
    given = [1] * (len(shape) - len(given)) + given  # of experts each has blocks of its own
    if len(sides) != len(shape):
        return ()
    return tuple(_block_size(size, count, block) for size, count, block in zip(shape, sides, given, strict=True))


def _block_size(size: int, count: int, given: object) -> int:
    """Return how many of `size` rows or columns have one of `count` scales: `given` where that fits."""
    if isinstance(given, int) and given > 0 and math.ceil(size / given) == count:
        return given
    power = next((power for power in range(size.bit_length() + 1) if math.ceil(size / 2**power) == count), None)
    if power is not None:
        return 1 << power
    return size // count if count and size % count == 0 else 0


def _spread(scales: Tensor, shape: torch.Size, blocks: tuple[int, ...]) -> Tensor:
    """Return scales in a form that broadcasts to `shape`: each is repeated over its block."""
    if scales.ndim == 1 and (scales.numel() == shape[0] or scales.numel() not in (1, shape[-1])):
        scales = scales.reshape(-1, *[1] * (len(shape) - 1))
    elif 1 < scales.ndim < len(shape):  # by expert, or by expert and row
        scales = scales.reshape(*scales.shape, *[1] * (len(shape) - scales.ndim))
    for side, block in enumerate(blocks):
        if scales.shape[side] not in (1, shape[side]):
            scales = scales.repeat_interleave(block, dim=side).narrow(side, 0, shape[side])
    return scales


def _four_bits(state: State, name: str, settings: str) -> Entry:
    """Return table[code]·absmax of its block, as bitsandbytes stores nf4 and fp4."""
    parts = (name, f"{name}.absmax", f"{name}.quant_map", settings)
    if any(part not in state.outlines for part in parts) or state.outlines[settings].numel() > 1 << 16:
        return _unread(state, name, name if name in state.outlines else settings)
    try:
        facts = json.loads(bytes(state.read(settings).tolist()))
        shape, block = torch.Size(facts["shape"]), int(facts["blocksize"])
        nested_block, offset = int(facts.get("nested_blocksize") or 1), float(facts.get("nested_offset") or 0)
        whole = torch.empty(shape, device="meta")
    except Exception:  # noqa: BLE001 -- damaged: reported for this weight
        return _unread(state, name, name)
    if shape.numel() != 2 * state.outlines[name].numel() or block < 1 or nested_block < 1:
        return _unread(state, name, name)

    def compute(packed: Tensor, absmax: Tensor, table: Tensor, _: Tensor, *nested: Tensor | None) -> Tensor:
        outer, outer_table = nested
        if outer is not None and outer_table is not None:
            outer = outer.float().repeat_interleave(nested_block)[: absmax.numel()]
            absmax = outer_table.float()[absmax.long()] * outer + offset
        codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()
        scales = absmax.float().flatten().repeat_interleave(block)[: codes.numel()]
        values: Tensor = table.float()[codes.long()] * scales
        return values.reshape(shape)

    nested = (f"{name}.nested_absmax", f"{name}.nested_quant_map")
    return computed_entry(state, name, (*parts, *nested), compute, outline=whole)


def _grouped(state: State, prefix: str) -> Entry:
    """Return (q − z)·s by group of inputs, (inputs, outputs), of GPTQ or AWQ."""
    name, packed, scales, zeros = (f"{prefix}{last}" for last in ("weight", "qweight", "scales", "qzeros"))
    rows, columns = state.outlines[packed].shape if state.outlines[packed].ndim == 2 else (0, 0)
    groups, outputs = state.outlines[scales].shape if state.outlines[scales].ndim == 2 else (0, 0)
    zero_columns = (state.shape(zeros) or (0,))[-1]
    bits = 32 * zero_columns // outputs if outputs else 0
    if bits not in BITS or not groups:
        return _unread(state, name, packed)
    per_number = 32 // bits
    is_awq = columns * per_number == outputs and columns != outputs
    inputs = rows if is_awq else rows * per_number
    if not is_awq and columns != outputs:
        return _unread(state, name, packed)
    order = f"{prefix}g_idx" if state.shape(f"{prefix}g_idx") == (inputs,) else None
    is_v2 = state.settings("quantization_config").get("checkpoint_format") == "gptq_v2"

    def compute(packed: Tensor, scales: Tensor, zeros: Tensor, order: Tensor | None) -> Tensor:
        offsets = unpack_columns(zeros, bits)
        if is_awq:
            codes, offsets = _awq_order(unpack_columns(packed, bits), bits), _awq_order(offsets, bits)
        else:
            codes = unpack_columns(packed.T, bits).T
            offsets = offsets if is_v2 else offsets + 1  # GPTQ stores the zero point less 1
        group = torch.arange(inputs) // math.ceil(inputs / groups) if order is None else order.long()
        if int(group.min()) < 0 or int(group.max()) >= groups:
            raise UnreadableError("skipped", UNKNOWN)
        return (codes - offsets[group]).float() * scales.float()[group]

    outline = torch.empty(inputs, outputs, device="meta")
    return computed_entry(state, name, (packed, scales, zeros, order), compute, outline=outline)


def _awq_order(codes: Tensor, bits: int) -> Tensor:
    order = _AWQ_ORDER if bits == 4 else tuple(range(32 // bits))
    return codes.reshape(codes.shape[0], -1, len(order))[:, :, list(order)].reshape(codes.shape)
