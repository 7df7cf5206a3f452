"""The protocols between the parts of the runtime: what is read, a reading under way, and what gives reports."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from esdmon.records import Coverage, LayerReport, Report, Screened
from esdmon.records.serialization import Plain, Stateful
from esdmon.runtime.fragment_exchange import Moved
from esdmon.runtime.holdings import Holder, Listed, Part
from esdmon.schedule.step_sample import StepSample

Answer: TypeAlias = dict[str, tuple[LayerReport, float]]
"""Finished readings by matrix, each with the seconds that it took."""


Ratio: TypeAlias = Callable[[], float]
"""Returns ‖ΔW‖/‖W‖; of a weight on an accelerator it may not be known at once."""
Own: TypeAlias = tuple[Callable[[], memoryview], Callable[[], Moved]]
"""A copy of this rank's own fragment of a parameter, and how far that has moved."""
Fetch: TypeAlias = Callable[[str, Holder, memoryview], Moved]
"""Fetches the fragment of a parameter from its holder into memory of its size."""


class Parts(Protocol):
    """What this rank holds of a job's weights. `esdmon.runtime.local_parts.LocalParts` is one."""

    def is_here(self, name: str) -> bool:
        """Return whether this rank holds all of a matrix, and so can read it alone."""

    def has(self, name: str) -> bool:
        """Return whether this rank's model has a matrix."""

    def holdings(self) -> tuple[dict[str, Listed], dict[str, Part]]:
        """Return the matrices of this rank's model, and its sharded parameters."""

    def coverage(self) -> Coverage:
        """Return how much of this rank's model is watched, as if it held all of it."""

    def fragments(self, parameters: Iterable[str]) -> list[str]:
        """Return those parameters of which this rank holds a fragment."""

    def size(self, parameter: str) -> int:
        """Return the bytes of this rank's fragment of a parameter."""

    def whole_size(self, parameter: str) -> int:
        """Return the bytes of a whole parameter."""

    def copy(self, parameter: str) -> Callable[[], memoryview]:
        """Begin to copy this rank's fragment, and return the function that gives the bytes of the copy."""

    def mark(self, parameter: str) -> Callable[[], Moved]:
        """Return the function that returns how far this rank's fragment has moved since the last call; NaN at first."""

    def assembled(
        self, parameters: Mapping[str, Sequence[Holder]], own: Mapping[str, Own], fetch: Fetch
    ) -> AbstractContextManager[float]:
        """Put whole parameters together, so that in this thread and block their matrices can be read."""


class Source(Protocol):
    """The matrices of a model, by name. `esdmon.runtime.reader.Reader` is one."""

    @property
    def parts(self) -> Parts:
        """Return what this rank holds of a model that is spread over the ranks of a job."""

    @property
    def strict(self) -> bool:
        """Return whether what fails is raised."""

    @property
    def coverage(self) -> Coverage:
        """Return how much of the model is read."""

    def settle(self) -> None:
        """Synchronise the device, so that pending training kernels are not counted as monitoring cost."""

    def advance(self, *, wait: bool = False) -> None:
        """Ask which copies have arrived from an accelerator; with `wait` wait for all of them."""

    def refresh(self) -> bool:
        """Look at the start of a due step whether the model has other matrices; return True where it has."""

    def nominal(self) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix, up to a common factor."""

    def on_device(self) -> Mapping[str, float]:
        """Return such seconds where eigenvalues are computed on a GPU, of those matrices for which that may pay."""

    def solvable(self) -> frozenset[str]:
        """Return those of them that a GPU can compute now: they are on it, and it has memory."""

    def size(self, name: str) -> int:
        """Return the bytes of a copy of a matrix."""

    def is_trainable(self, name: str) -> bool:
        """Return whether any parameter behind a matrix requires a gradient."""

    def drifts(self, names: Iterable[str]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since it was last marked, of those for which it is known by now."""

    def screen(self, name: str, step: int) -> float | None:
        """Begin to compute the norms of a matrix, without its spectrum.

        Returns:
            The seconds that this is expected to take on an accelerator; None for a matrix that is not screened.
        """

    def screened(self) -> list[Screened]:
        """Return what was screened since the last call and is computed by now."""

    def mark(self, name: str) -> Ratio:
        """Make the current weight the new baseline, and return the function that returns ‖ΔW‖/‖W‖ since the last."""

    def last_step(self, name: str) -> StepSample:
        """Return what the last sample of a single step has shown of a matrix; NaN where there is none."""

    def begin(self, name: str, step: int, *, moved: Ratio, copy: bool) -> Callable[[], LayerReport]:
        """Begin a reading at its step, and return the function that finishes it."""

    def solve(self, name: str, step: int, *, moved: Ratio) -> Callable[[], LayerReport] | None:
        """Compute the eigenvalues of a matrix on its GPU, and return the function that finishes the reading.

        Returns:
            None where the GPU fails.
        """


class Sampled(Protocol):
    """Weights of which a few elements are compared before and after single steps. A `Reader` is one."""

    def begin_step_sample(self) -> None:
        """Sample the weights before an optimizer step."""

    def end_step_sample(self) -> None:
        """Sample them after it."""

    def step_samples(self) -> dict[str, StepSample]:
        """Return what was sampled since the last call and is computed by now."""

    def step_state(self) -> Plain:
        """Return what has been sampled of single steps."""

    def restore_steps(self, state: Plain) -> None:
        """Continue from `step_state()`."""


class Ranks(Protocol):
    """Readings between scheduled steps in which other ranks take part. A `ReadingPipeline` on rank 0 is one."""

    @property
    def next_poll(self) -> int | None:
        """Return the step of the next one; None before the next scheduled step."""

    def is_elsewhere(self, name: str) -> bool:
        """Return whether other ranks have to take part in a reading of a matrix."""

    def ask(self, names: Collection[str]) -> None:
        """Ask all ranks to read at the next poll those of these matrices for which there is credit."""


def unknown() -> float:
    """Return NaN: how far a weight has moved is not known."""
    return math.nan


@dataclass(frozen=True, slots=True)
class Task:
    """Readings under way."""

    names: tuple[str, ...]
    poll: Callable[[], Answer | None]
    """Return the readings; None until they are finished."""
    give_up: Callable[[], Answer]
    """Return the readings that are finished, and cancel the others."""
    in_hook: float = 0.0
    """Seconds in which a GPU has computed eigenvalues, which are charged already."""


class Pipeline(Stateful, Protocol):
    """What reads for a monitor: `ReadingPipeline`, or a `RemoteReader` on another rank."""

    reports: bool
    """False where reports are made by another rank."""

    @property
    def dropped(self) -> int:
        """Return how many readings were skipped or lost."""

    @property
    def latest(self) -> Mapping[str, LayerReport]:
        """Return the last reading of each matrix."""

    @property
    def is_ready(self) -> bool:
        """Return whether there is nothing to do before the first due step."""

    def get_ready(self, step: int) -> None:
        """Do at a step before the first due one what has to be done for that one."""

    @property
    def under_way(self) -> bool:
        """Return whether any readings are begun and not reported."""

    @property
    def under_way_here(self) -> bool:
        """Return whether this process has to finish any of them."""

    def settle(self) -> None:
        """Synchronise the device before what follows is measured, where readings wait for it."""

    def advance(self, *, waiting: bool = False) -> None:
        """Ask which copies have arrived from an accelerator, and go on with what waited for them.

        Args:
            waiting: True where the training waits for the readings, False at each step.
        """

    def leftover(self) -> tuple[str, ...]:
        """Return the matrices of the last scheduled step that are to be read now, at a step between."""

    def is_poll(self, step: int) -> bool:
        """Return whether ranks may have to read at a step that is not scheduled: called once, at each of these."""

    def begin(self, step: int, host_step: int | None = None, extra: Collection[str] | None = None) -> None:
        """Begin the readings of a scheduled step; between these those of `extra`, and what all ranks read.

        Args:
            step: optimizer steps taken.
            host_step: as the host counts them.
            extra: None at a scheduled step.
        """

    def finished(self) -> Iterator[Report]:
        """Yield the reports that are complete, in step order."""

    def give_up(self) -> None:
        """Cancel what is under way."""

    def close(self) -> None:
        """Free threads and connections."""
