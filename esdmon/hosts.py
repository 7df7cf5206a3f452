"""What callbacks for Trainers have in common: options that are checked early, sinks that the host has, when to stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from esdmon.attach import check_options, watch
from esdmon.choices import listed
from esdmon.monitor import Monitor
from esdmon.records import Alert, Report
from esdmon.sinks import Sink
from esdmon.tags import Namespace, scalars


@final
class HostOptions:
    """The arguments of a callback, until there is a model.

    Args:
        every: as in `esdmon.watch`.
        sinks: as there, but that "auto" stands for the host's own loggers.
        options: the others of `esdmon.watch`.

    Raises:
        InputError: for any that cannot be used.
    """

    def __init__(self, *, every: Any, sinks: Any, options: Mapping[str, Any]) -> None:
        check_options(every=every, sinks=sinks, **options)
        self.options = {"every": every, **options}
        if isinstance(alerts := options.get("alerts"), os.PathLike):
            self.options["alerts"] = os.fspath(alerts)  # a text can be kept in a Trainer's checkpoint
        self.sinks = list(listed(sinks))

    def watch(
        self, model: Any, optimizer: Any, *, first_step: int, hosts_own: Callable[[], Sequence[str | Sink]] | None
    ) -> Monitor:
        """A monitor that the host steps.

        Args:
            model: what trains.
            optimizer: the host's, one or several.
            first_step: the host's steps so far.
            hosts_own: gives sinks for what "auto" stands for; None where nothing is to be written.
        """
        sinks: list[str | Sink] = []
        if hosts_own is not None:
            sinks = [sink for given in self.sinks for sink in (hosts_own() if given == "auto" else [given])]
        return watch(model, optimizer, sinks=sinks, hook=False, first_step=first_step, **self.options)


@final
class NumbersSink:
    """A sink for a logger that takes numbers by name: `log(numbers, step)`, with the tags of `esdmon.tags`.

    Args:
        log: takes the numbers and the step.
        flush: has the logger write what it holds.
        place: the logger, which two monitors that write to it do not share tags in.
    """

    def __init__(
        self,
        log: Callable[[dict[str, float], int], object],
        flush: Callable[[], object] = int,
        *,
        place: object = None,
    ) -> None:
        self._log = log
        self._flush = flush
        self._names = Namespace(self if place is None else place, f"this {type(place).__name__}")

    def write(self, report: Report) -> None:
        """One call."""
        self._log(self._names.all(scalars(report)), report.x)

    def alert(self, alert: Alert) -> None:
        """Nothing: such loggers have no place for words. The log has them."""

    def flush(self) -> None:
        """Have the logger write what it holds."""
        self._flush()

    def close(self) -> None:
        """Likewise: the host ends its loggers."""
        self._names.free()
        self._flush()
