"""Define `Fragment`, the part of a parameter that one rank of a job holds, and `Region`, the part that is one matrix.

Parameters are assembled from fragments. Where they are not, each rank finds the region in its own fragment.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Fragment:
    """A box of a parameter, or an interval of the flattened parameter."""

    offset: tuple[int, ...]
    """The first index in each dimension; for an interval, the first element of the flattened parameter."""
    size: tuple[int, ...]
    """The length in each dimension."""
    is_interval: bool = False

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """Return the box of a whole parameter."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def interval(cls, start: int, stop: int) -> Self:
        """Return the interval of elements from start to stop − 1 of a flattened parameter."""
        return cls((start,), (max(0, stop - start),), is_interval=True)

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Self:
        """Return the fragment that `to_plain` was called on."""
        offset, size, is_interval = plain
        return cls(tuple(offset), tuple(size), bool(is_interval))

    def to_plain(self) -> list[Any]:
        """Return plain data, for JSON."""
        return [list(self.offset), list(self.size), int(self.is_interval)]

    @property
    def n_elements(self) -> int:
        """Return the number of elements."""
        return math.prod(self.size)


@dataclass(frozen=True, slots=True)
class Region:
    """Elements of a parameter: the flattened parameter is walked in steps of several lengths."""

    first: int
    """Index of the first element in the flattened parameter."""
    walks: tuple[tuple[int, int], ...]
    """Length of a step and number of elements, from the shortest step on; walks that continue each other are one."""

    @classmethod
    def of(cls, first: int, size: Sequence[int], strides: Sequence[int]) -> Self:
        """Return the elements that a view of a contiguous parameter shows.

        Args:
            first: offset of the view.
            size: its length in each dimension.
            strides: its stride in each dimension.

        >>> Region.of(6, (2, 3), (3, 1)) == Region.of(6, (3, 2), (1, 3)) == Region.of(6, (6,), (1,))
        True
        """
        walks: list[tuple[int, int]] = []
        for stride, count in sorted((stride, count) for stride, count in zip(strides, size, strict=True) if count > 1):
            if walks and stride == math.prod(walks[-1]):
                walks[-1] = walks[-1][0], walks[-1][1] * count
            else:
                walks.append((stride, count))
        return cls(first, tuple(walks))

    def box(self, shape: Sequence[int]) -> Fragment | None:
        """Return the box of a parameter of this shape that has these elements; None where they do not form one.

        >>> Region.of(1, (3, 2), (4, 1)).box((3, 4))
        Fragment(offset=(0, 1), size=(3, 2), is_interval=False)
        >>> Region.of(1, (3, 2), (4, 1)).box((12,))
        """
        strides = [math.prod(shape[side + 1 :]) for side in range(len(shape))]
        last = self.first + sum(stride * (count - 1) for stride, count in self.walks)
        low, high = (
            [at // stride % length for stride, length in zip(strides, shape, strict=True)] for at in (self.first, last)
        )
        size = tuple(stop - start + 1 for start, stop in zip(low, high, strict=True))
        if min(size, default=1) < 1 or Region.of(self.first, size, strides) != self:
            return None
        return Fragment(tuple(low), size)


def covers(fragments: Iterable[Fragment], shape: Sequence[int]) -> bool:
    """Return whether different fragments of one sharding make up a parameter.

    It checks that the numbers of elements agree, and that the fragments reach both ends of each side.

    >>> covers([Fragment((0, 0), (2, 3)), Fragment((2, 0), (1, 3))], (3, 3))
    True
    """
    found = set(fragments)
    kinds = {fragment.is_interval for fragment in found if fragment.n_elements}
    if len(kinds) > 1 or sum(fragment.n_elements for fragment in found) != math.prod(shape):
        return False
    ends = (math.prod(shape),) if True in kinds else tuple(shape)
    held = [fragment for fragment in found if fragment.n_elements]
    return all(_reaches(held, side, end) for side, end in enumerate(ends))


def _reaches(fragments: Sequence[Fragment], side: int, end: int) -> bool:
    starts = (fragment.offset[side] for fragment in fragments)
    stops = (fragment.offset[side] + fragment.size[side] for fragment in fragments)
    return min(starts, default=0) == 0 and max(stops, default=0) == end
