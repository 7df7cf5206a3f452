"""Compute the part of a weight that a rank holds, from the way it is split over ranks, without communication."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from esdmon.schedule.fragments import Fragment

_Runs = list[tuple[int, int]]
"""Indices along a side, as ascending intervals [start, stop)."""


@dataclass(frozen=True, slots=True)
class Split:
    """One way in which a weight is split: each of some equal blocks along a side is cut into a part for each rank.

    So a rank holds a part of the gate and a part of the up-projection, if both are in one weight.
    """

    side: int
    parts: int
    """Number of ranks."""
    index: int
    """This rank's place among them."""
    blocks: int = 1


def fragment_of(shape: Sequence[int], splits: Sequence[Split]) -> tuple[tuple[int, ...], Fragment | None]:
    """Return the shape in which this rank's part is a box, the same for all ranks, and that box.

    The shape is that of the weight, with two sides (blocks, length of a block) for a side whose blocks stay apart.

    Args:
        shape: of the whole weight.
        splits: in the order in which they are applied. Parts are as those of `torch.chunk`: the last ones may be
            shorter or empty.

    Returns:
        The shape and the box; None in its place where this rank holds nothing.

    Raises:
        ValueError: if the part cannot be a box, as blocks or parts are of unequal length.

    >>> fragment_of((6, 2), [Split(side=0, parts=2, index=1)])
    ((6, 2), Fragment(offset=(3, 0), size=(3, 2), is_interval=False))
    >>> fragment_of((8, 2), [Split(side=0, parts=2, index=1, blocks=2)])
    ((2, 4, 2), Fragment(offset=(0, 2, 0), size=(2, 2, 2), is_interval=False))
    """
    grid: list[int] = []
    offset: list[int] = []
    size: list[int] = []
    for side, length in enumerate(shape):
        own = [split for split in splits if split.side == side]
        runs = [(0, length)]
        for split in own:
            runs = _taken(runs, split)
        blocks = _blocks_apart(own)
        start, stop = _in_each_block(runs, length, blocks)
        grid += [length] if blocks == 1 else [blocks, length // blocks]
        offset += [start] if blocks == 1 else [0, start]
        size += [stop - start] if blocks == 1 else [blocks, stop - start]
    return tuple(grid), Fragment(tuple(offset), tuple(size)) if prod(size) else None


def _blocks_apart(splits: Sequence[Split]) -> int:
    """Return in how many blocks of one side a rank's part lies; later splits of the side share out the blocks."""
    apart = 1
    for place, split in enumerate(splits):
        later = prod(other.parts for other in splits[place + 1 :])
        apart = max(apart, -(-split.blocks // later))
    return apart


def _in_each_block(runs: _Runs, length: int, blocks: int) -> tuple[int, int]:
    """Return the interval that the runs have in each block, counted from the block's beginning.

    Raises:
        ValueError: if it is not the same in each, or not one.
    """
    if not runs:
        return 0, 0
    if length % blocks:
        raise ValueError(f"{length} cannot be divided into {blocks} equal blocks")
    step = length // blocks
    cut = [(max(start, low), min(stop, low + step)) for low in range(0, length, step) for start, stop in runs]
    inside = [(start % step, start % step + stop - start) for start, stop in cut if start < stop]
    if len(inside) != blocks or len(set(inside)) != 1:
        raise ValueError(f"{runs} is not one interval in each of {blocks} blocks of {length}")
    return inside[0]


def _taken(runs: _Runs, split: Split) -> _Runs:
    """Return the part of these indices that a split leaves to this rank."""
    total = sum(stop - start for start, stop in runs)
    taken: _Runs = []
    for block in range(split.blocks):
        low, high = _chunk(total, split.blocks, block)
        start, stop = _chunk(high - low, split.parts, split.index)
        taken += _at(runs, low + start, low + stop)
    return _merged(taken)


def _chunk(length: int, parts: int, index: int) -> tuple[int, int]:
    size = -(-length // parts)
    return min(index * size, length), min((index + 1) * size, length)


def _at(runs: _Runs, start: int, stop: int) -> Iterable[tuple[int, int]]:
    """Yield the parts of runs between two positions."""
    before = 0
    for low, high in runs:
        first, last = max(low, low + start - before), min(high, low + stop - before)
        if first < last:
            yield first, last
        before += high - low


def _merged(runs: _Runs) -> _Runs:
    breaks = [place for place, (one, other) in enumerate(pairwise(runs), 1) if one[1] != other[0]]
    bounds = [0, *breaks, len(runs)] if runs else [0]
    return [(runs[first][0], runs[last - 1][1]) for first, last in pairwise(bounds)]
