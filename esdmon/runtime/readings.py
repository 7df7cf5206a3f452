"""Define `Readings`, the protocol of an object that reads for a monitor, and `NoReadings`, which reads nothing."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar, Protocol, final

from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain, Stateful


class Readings(Stateful, Protocol):
    """The object that reads for a monitor: a `ReadingPipeline`, or a `RemoteReader` on other ranks than 0."""

    reports: bool
    """False if another rank makes the reports."""

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
        """Prepare the first due step, at a step before it."""

    @property
    def under_way(self) -> bool:
        """Return whether there are begun readings without a report."""

    @property
    def is_idle(self) -> bool:
        """Return whether there is nothing to do before the next step at which something is read or sampled."""

    @property
    def under_way_here(self) -> bool:
        """Return whether this process has unfinished readings."""

    def settle(self) -> None:
        """Synchronise the device if readings wait for it, before their time is measured."""

    def advance(self, *, waiting: bool = False) -> None:
        """Check which copies have arrived from an accelerator, and continue readings that waited for them.

        Args:
            waiting: True if the training waits for the readings, False at a step.
        """

    def leftover(self) -> tuple[str, ...]:
        """Return the matrices of the last scheduled step that can be read now, at a step that is not scheduled."""

    def is_poll(self, step: int) -> bool:
        """Return whether ranks may have to read at a step that is not scheduled: called once, at each of these."""

    def begin(
        self, step: int, host_step: int | None = None, names: Collection[str] = (), *, is_scheduled: bool = True
    ) -> None:
        """Begin the readings of a scheduled step; at another step those of `names`, and at a poll the requested ones.

        Args:
            step: optimizer steps taken.
            host_step: optimizer steps as the host counts them.
            names: matrices that are read first at a scheduled step; at another step only these are read.
            is_scheduled: whether the step is scheduled.
        """

    def finished(self) -> Iterator[Report]:
        """Yield the reports that are complete, in step order."""

    def give_up(self) -> None:
        """Cancel unfinished readings."""

    def close(self) -> None:
        """Free threads and connections."""


@final
class NoReadings:
    """Read nothing, and report nothing."""

    reports = False
    dropped = 0
    latest: ClassVar[Mapping[str, LayerReport]] = {}
    is_ready = True
    under_way = under_way_here = False
    is_idle = True

    def get_ready(self, step: int) -> None:
        """Do nothing."""

    def settle(self) -> None:
        """Do nothing."""

    def advance(self, *, waiting: bool = False) -> None:
        """Do nothing."""

    def leftover(self) -> tuple[str, ...]:
        """Return no matrices."""
        return ()

    def is_poll(self, step: int) -> bool:  # noqa: ARG002 -- of the protocol
        """Return False: no rank has to read."""
        return False

    def begin(
        self, step: int, host_step: int | None = None, names: Collection[str] = (), *, is_scheduled: bool = True
    ) -> None:
        """Do nothing."""

    def finished(self) -> Iterator[Report]:
        """Yield no report."""
        return iter(())

    def give_up(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def state_dict(self) -> Plain:
        """Return an empty state."""
        return {}

    def prepare(self, state: Plain) -> Callable[[], None]:  # noqa: ARG002 -- of the protocol
        """Return a function that restores nothing."""
        return lambda: None
