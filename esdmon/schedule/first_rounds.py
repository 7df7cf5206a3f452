"""Order the first readings of a model: one matrix of each kind first, from the middle of the model's depth.

Then come the first and the last of each kind, and then those between. So the first report of a large model covers every
kind.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise

_DEPTH = re.compile(r"\d+")  # in the name of a layer, which is otherwise the same for all layers of a kind


def first_rounds(names: Iterable[str]) -> dict[str, int]:
    """Return in which round of first readings each matrix is: a round has one of each kind.

    A kind is a name without its numbers.

    >>> first_rounds(["h.0.fc", "h.1.fc", "h.2.fc", "h.3.fc", "head"])
    {'h.0.fc': 1, 'h.1.fc': 0, 'h.2.fc': 3, 'h.3.fc': 2, 'head': 0}
    """
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_DEPTH.sub("0", name), []).append(name)
    places = {
        kind: dict(zip(_spread(len(of_kind)), range(len(of_kind)), strict=True)) for kind, of_kind in kinds.items()
    }
    return {name: places[kind][place] for kind, of_kind in kinds.items() for place, name in enumerate(of_kind)}


def _spread(count: int) -> Iterator[int]:
    """Yield 0 … count − 1 in an order whose beginning is spread out: the middle, the ends, then middles of the gaps."""
    first = dict.fromkeys(((count - 1) // 2, 0, count - 1)) if count else {}
    yield from first
    ends = sorted(first)
    between = deque(pairwise(ends))
    while between:
        low, high = between.popleft()
        middle = (low + high) // 2
        if low < middle:
            yield middle
            between += (low, middle), (middle, high)
