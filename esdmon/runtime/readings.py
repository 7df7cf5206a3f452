"""Define `Readings`, the base class of what reads for a monitor; it reads nothing itself."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar

from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain


class Readings:
    """What reads for a monitor: a `ReadingPipeline`, or a `RemoteReader` on other ranks than 0.

    Its methods do nothing; they are enough for a copy of a monitor.
    """

    reports: ClassVar[bool] = False
    """False if another rank makes the reports."""

    @property
    def dropped(self) -> int:
        """Return how many readings were skipped or lost."""
        return 0

    @property
    def latest(self) -> Mapping[str, LayerReport]:
        """Return the last reading of each matrix."""
        return {}

    @property
    def is_ready(self) -> bool:
        """Return whether there is nothing to do before the first due step."""
        return True

    def get_ready(self, step: int) -> None:
        """Prepare the first due step, at a step before it."""

    @property
    def under_way(self) -> bool:
        """Return whether there are begun readings without a report."""
        return False

    @property
    def under_way_here(self) -> bool:
        """Return whether this process has unfinished readings."""
        return False

    @property
    def is_idle(self) -> bool:
        """Return whether there is nothing to do before the next step at which something is read or sampled."""
        return True

    def settle(self) -> None:
        """Synchronise the device if readings wait for it, before their time is measured."""

    def advance(self, *, waiting: bool = False) -> None:
        """Check which copies have arrived from an accelerator, and continue readings that waited for them.

        Args:
            waiting: True if the training waits for the readings, False at a step.
        """

    def leftover(self) -> tuple[str, ...]:
        """Return the matrices of the last scheduled step that can be read now, at a step that is not scheduled."""
        return ()

    def is_poll(self, step: int) -> bool:  # noqa: ARG002 -- for overriding
        """Return whether ranks may have to read at a step that is not scheduled: called once, at each of these."""
        return False

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
        yield from ()

    def give_up(self) -> None:
        """Cancel unfinished readings."""

    def close(self) -> None:
        """Free threads and connections."""

    def state_dict(self) -> Plain:
        """Return the state as plain data."""
        return {}

    def prepare(self, state: Plain) -> Callable[[], None]:  # noqa: ARG002 -- for overriding
        """Parse `state_dict()`, and return the function that continues from it."""
        return lambda: None
