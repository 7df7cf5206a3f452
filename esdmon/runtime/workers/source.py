"""Define two protocols: `Source`, which starts readings of a model, and `Task`, a started reading."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from esdmon.records import Coverage, LayerReport, Screened
from esdmon.schedule.step_sample import StepSample

Answer: TypeAlias = dict[str, tuple[LayerReport, float]]
"""Finished readings by matrix, each with the seconds that it took."""
Ratio: TypeAlias = Callable[[], float]
"""Returns ‖ΔW‖/‖W‖; for a weight on an accelerator it may not be known at once."""


def unknown() -> float:
    """Return NaN: the move of a weight is not known."""
    return math.nan


class Source(Protocol):
    """The matrices of a model, by name, as implemented by `esdmon.runtime.reading.reader.Reader`."""

    @property
    def strict(self) -> bool:
        """Return whether errors are raised."""

    @property
    def coverage(self) -> Coverage:
        """Return the part of the model that is read."""

    def synchronizer(self) -> Callable[[], None]:
        """Return a function that synchronises the devices of the weights.

        After it pending training kernels are not counted as monitoring cost. Finding the devices takes time in a model
        of many parameters, and is such a cost.
        """

    @property
    def is_idle(self) -> bool:
        """Return whether no copy from an accelerator is under way."""

    def advance(self, *, wait: bool = False) -> None:
        """Check which copies have arrived from an accelerator; with `wait` wait for all of them."""

    def refresh(self) -> bool:
        """Find the matrices again at the start of a due step; return True if they have changed."""

    def nominal(self) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix, up to a common factor."""

    def seconds_on_device(self) -> Mapping[str, float]:
        """Return the same for matrices whose eigenvalues may be computed faster on a GPU, with the GPU's time."""

    def solvable(self) -> frozenset[str]:
        """Return the matrices of `seconds_on_device` that a GPU can solve now: they are on it, and it has memory."""

    def size(self, name: str) -> int:
        """Return the bytes of a copy of a matrix."""

    def n_elements(self, name: str) -> int:
        """Return the number of elements of a matrix; 0 where it is not known, as of another rank's."""

    def is_trainable(self, name: str) -> bool:
        """Return whether any parameter behind a matrix requires a gradient."""

    def drifts(self, names: Iterable[str]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ since the last `mark`, for each matrix for which it is known by now."""

    def screen(self, name: str, step: int) -> float | None:
        """Begin to compute the norms of a matrix, without its spectrum.

        Returns:
            The expected seconds on an accelerator; None for a matrix that is not screened.
        """

    def screened(self) -> list[Screened]:
        """Return finished screenings since the last call."""

    def mark(self, name: str) -> Ratio:
        """Make the current weight the new baseline, and return the function that returns ‖ΔW‖/‖W‖ since the last."""

    def last_step(self, name: str) -> StepSample:
        """Return the last sample of a single step of a matrix; its values are NaN if there is none."""

    def begin(self, name: str, step: int, *, moved: Ratio, copy: bool) -> Callable[[], LayerReport]:
        """Begin a reading at its step, and return the function that finishes it."""

    def solve(self, name: str, step: int, *, moved: Ratio) -> Callable[[], LayerReport] | None:
        """Compute the eigenvalues of a matrix on its GPU, and return the function that finishes the reading.

        Returns:
            None if the GPU fails.
        """


@dataclass(frozen=True, slots=True)
class Task:
    """Unfinished readings."""

    names: tuple[str, ...]
    poll: Callable[[], Answer | None]
    """Returns the readings; None until they are finished."""
    give_up: Callable[[], Answer]
    """Cancels the unfinished readings, and returns the finished ones."""
    in_hook: float = 0.0
    """Seconds in which a GPU has computed eigenvalues, which are charged already."""
