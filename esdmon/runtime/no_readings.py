"""`NoReadings`: the readings of a monitor that is a copy, which has no model."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import ClassVar, final

from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain


@final
class NoReadings:
    """Read nothing, and report nothing."""

    reports = False
    dropped = 0
    latest: ClassVar[Mapping[str, LayerReport]] = {}
    is_ready = True
    under_way = under_way_here = False

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
        """Return that no rank has to read."""
        return False

    def begin(self, step: int, host_step: int | None = None, extra: Collection[str] | None = None) -> None:
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
