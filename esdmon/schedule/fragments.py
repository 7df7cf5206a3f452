"""Define `Fragment`: the part of a parameter that one rank of a job holds. Parameters are assembled from fragments."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Fragment:
    """A box of a parameter, or an interval of the flattened parameter."""

    offset: tuple[int, ...]
    """The first index in each dimension; of an interval the first element of the flattened parameter."""
    size: tuple[int, ...]
    """The length in each dimension."""
    is_interval: bool = False

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Self:
        """Return the box that is all of a parameter."""
        return cls((0,) * len(shape), tuple(shape))

    @classmethod
    def interval(cls, start: int, stop: int) -> Self:
        """Return the elements start to stop - 1 of a flattened parameter."""
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


def covers(fragments: Iterable[Fragment], shape: Sequence[int]) -> bool:
    """Return whether different fragments of one sharding make up a parameter.

    Their elements are as many as its own, and they reach to both ends of each side.

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
