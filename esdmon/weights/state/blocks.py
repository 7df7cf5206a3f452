"""Unpack the 4-bit blocks of GPT-OSS (MXFP4), and the weights of MLX, with a scale and an offset for each group."""

from collections.abc import Iterator

import torch
from torch import Tensor

from esdmon.weights.state.codes import BITS, UNKNOWN, powers_of_two, unpack_columns, unpack_fp4
from esdmon.weights.state.entries import Entry, State, computed_entry, unread_entry


def entries_of_blocks(state: State) -> Iterator[Entry]:
    """Iterate over the weights of a state dict that are stored in these two ways."""
    for name, outline in state.outlines.items():
        path, _, last = name.rpartition(".")
        scales = f"{name.removesuffix('_blocks')}_scales"
        if last.endswith("_blocks") and scales in state.outlines:
            yield _microscaled(state, name, scales)
        elif last == "weight" and outline.dtype == torch.uint32 and len(state.shape(f"{path}.scales") or ()) == 2:
            yield _of_mlx(state, name, f"{path}.scales", f"{path}.biases")


def _microscaled(state: State, blocks: str, scales: str) -> Entry:
    """Return the code's number times 2^(scale − 127), of (experts, outputs, blocks, 16) bytes of two codes each."""
    name, shape = blocks.removesuffix("_blocks"), state.outlines[blocks].shape
    if len(shape) != 4 or state.outlines[scales].shape != shape[:3] or state.outlines[blocks].dtype != torch.uint8:
        return unread_entry(state, name, (blocks, scales), UNKNOWN)

    def compute(packed: Tensor, exponents: Tensor) -> Tensor:
        numbers = unpack_fp4(packed) * powers_of_two(exponents)[..., None]
        return numbers.flatten(2).mT  # the module has (experts, inputs, outputs)

    outline = torch.empty(shape[0], 2 * shape[2] * shape[3], shape[1], device="meta")
    return computed_entry(state, name, (blocks, scales), compute, outline=outline)


def _of_mlx(state: State, name: str, scales: str, offsets: str) -> Entry:
    """Return q·s + b by group of inputs; how long the groups are is in `config.json` only."""
    size, bits = _groups_of_mlx(state)
    shape, groups = state.outlines[name].shape, state.outlines[scales].shape
    is_known = bits in BITS and size > 0 and len(shape) == 2
    if not is_known or groups != (shape[0], shape[1] * 32 // bits // size) or state.shape(offsets) != groups:
        return unread_entry(state, name, (name,), UNKNOWN)

    def compute(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        scale, offset = (part.float().repeat_interleave(size, dim=1) for part in (scale, offset))
        return unpack_columns(codes.view(torch.int32), bits).float() * scale + offset

    outline = torch.empty(shape[0], shape[1] * 32 // bits, device="meta")
    return computed_entry(state, name, (name, scales, offsets), compute, outline=outline)


def _groups_of_mlx(state: State) -> tuple[int, int]:
    """Return the number of inputs in a group, and of bits, by the configuration; 0 if it does not say it."""
    size, bits = (state.settings("quantization").get(key) for key in ("group_size", "bits"))
    return (size, bits) if isinstance(size, int) and isinstance(bits, int) else (0, 0)
