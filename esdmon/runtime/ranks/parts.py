"""Define two protocols: `Parts`, the parts of weights that a rank holds, and `ShardedSource`, which has such parts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

from esdmon.runtime.ranks.fragment_exchange import FragmentCopy, Moved
from esdmon.runtime.ranks.holdings import Holder, Listed, Part
from esdmon.runtime.workers.source import Source

Fetch: TypeAlias = Callable[[str, Holder, memoryview], Moved]
"""Fetches the fragment of a parameter from its holder into memory of its size."""

Squares: TypeAlias = Callable[[], dict[str, float] | None]
"""Returns Σ wᵢⱼ² of parts of matrices by name, of those that could be read; None until they have arrived."""


class Parts(Protocol):
    """The parts of a job's weights on this rank, as implemented by `esdmon.runtime.reading.local_parts.LocalParts`."""

    def is_here(self, name: str) -> bool:
        """Return whether this rank holds all of a matrix, and so can read it alone."""

    def has(self, name: str) -> bool:
        """Return whether this rank's model has a matrix."""

    def holdings(self) -> tuple[dict[str, Listed], dict[str, Part]]:
        """Return the matrices of this rank's model, and its sharded parameters."""

    def has_fragment(self, parameter: str) -> bool:
        """Return whether this rank holds a fragment of a parameter."""

    def size(self, parameter: str) -> int:
        """Return the bytes of this rank's fragment of a parameter."""

    def whole_size(self, parameter: str) -> int:
        """Return the bytes of a whole parameter."""

    def copy(self, parameter: str) -> Callable[[], memoryview]:
        """Begin to copy this rank's fragment, and return a function that returns the bytes of the copy."""

    def mark(self, parameter: str) -> Callable[[], Moved]:
        """Return the function that returns how far this rank's fragment has moved since the last call; NaN at first."""

    def squares(self, names: Iterable[str]) -> tuple[Squares, float]:
        """Compute Σ wᵢⱼ² of this rank's parts of some matrices, or queue that on their device.

        Returns:
            A function that returns the sums, and their expected seconds on an accelerator.
        """

    def assembled(
        self, parameters: Mapping[str, Sequence[Holder]], own: Mapping[str, FragmentCopy], fetch: Fetch
    ) -> AbstractContextManager[float]:
        """Assemble whole parameters, so that in this thread and block their matrices can be read."""


class ShardedSource(Source, Protocol):
    """The matrices of a model that may be spread over the ranks of a job."""

    @property
    def parts(self) -> Parts:
        """Return the parts of the model on this rank."""
