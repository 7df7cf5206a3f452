"""The protocols between the parts of the runtime: what is read, a reading under way, and what gives reports."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from esdmon.records import Coverage, LayerReport, Report
from esdmon.records.serialization import Plain, Stateful
from esdmon.schedule.step_sample import StepSample

Answer: TypeAlias = dict[str, tuple[LayerReport, float]]
"""Finished readings by matrix, each with the seconds that it took."""


class Source(Protocol):
    """The matrices of a model, by name. `esdmon.runtime.reader.Reader` is one."""

    @property
    def coverage(self) -> Coverage:
        """Return how much of the model is read."""

    def settle(self) -> None:
        """Synchronise the device, so that pending training kernels are not counted as monitoring cost."""

    def refresh(self) -> bool:
        """Look at the start of a due step whether the model has other matrices; return True where it has."""

    def nominal(self) -> dict[str, float]:
        """Return the estimated seconds of a reading by matrix, up to a common factor."""

    def size(self, name: str) -> int:
        """Return the bytes of a copy of a matrix."""

    def is_trainable(self, name: str) -> bool:
        """Return whether any parameter behind a matrix requires a gradient."""

    def look(self, names: Iterable[str]) -> dict[str, float]:
        """Return ‖ΔW‖/‖W‖ of each matrix since it was last marked."""

    def mark(self, name: str) -> float:
        """Return ‖ΔW‖/‖W‖ since the last call, and make the current weight the new baseline."""

    def fingerprint(self) -> str:
        """Return a text that is equal on ranks that hold the same weights."""

    def begin(self, name: str, step: int, *, moved: float, copy: bool) -> Callable[[], LayerReport]:
        """Begin a reading at its step, and return the function that finishes it."""


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


@dataclass(frozen=True, slots=True)
class Task:
    """Readings under way."""

    names: tuple[str, ...]
    poll: Callable[[], Answer | None]
    """Return the readings; None until they are finished."""
    give_up: Callable[[], Answer]
    """Return the readings that are finished, and cancel the others."""


class Pipeline(Stateful, Protocol):
    """What reads for a monitor: `ReadingPipeline`, or a `RemoteReader` on another rank."""

    latest: dict[str, LayerReport]
    dropped: int
    reports: bool
    """False where reports are made by another rank."""

    @property
    def under_way(self) -> bool:
        """Return whether any readings are begun and not reported."""

    @property
    def under_way_here(self) -> bool:
        """Return whether this process has to finish any of them."""

    def settle(self) -> None:
        """Synchronise the device before what follows is measured."""

    def begin(self, step: int, host_step: int | None = None, extra: Collection[str] = ()) -> None:
        """Begin the readings of a scheduled step; of the matrices `extra` at a step between these."""

    def finished(self) -> Iterator[Report]:
        """Yield the reports that are complete, in step order."""

    def give_up(self) -> None:
        """Cancel what is under way."""

    def close(self) -> None:
        """Free threads and connections."""
