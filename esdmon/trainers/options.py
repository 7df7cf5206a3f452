"""`CallbackOptions`: the arguments of a trainer callback, and the monitor and summary made from them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, Self, final

import numpy as np

from esdmon.errors import InputError, nearest
from esdmon.isolation import describe
from esdmon.notice import notice
from esdmon.options import WatchOptions
from esdmon.options.sinks import Sinks, listed
from esdmon.options.watch_options import is_default
from esdmon.plugins.manager import shown
from esdmon.present.scalars import summary_tags
from esdmon.records import SUMMARISED, Coverage, Report
from esdmon.runtime.monitor import Monitor
from esdmon.schedule import Schedule, union
from esdmon.sinks import Sink
from esdmon.trainers.optimizers import readable
from esdmon.watching import attach

_log = logging.getLogger("esdmon")
PREFIX = "esdmon_summary/"
"""Prefix of the summary among a trainer's metrics."""

HostsOwn = Iterable[tuple[str, Callable[[], str | Sink]]]
"""Sinks of a trainer: the name of each in messages, and a function that returns it."""


@final
class CallbackOptions:
    """Holds the validated arguments of a callback until there is a model; copies of a callback share it.

    Args:
        every: steps between readings, or a function of the step; as in `esdmon.watch`.
        sinks: as in `esdmon.watch`, but "auto" writes to the trainer's loggers.
        options: the other options of `esdmon.watch`.

    Raises:
        InputError: for an invalid option.
    """

    def __init__(self, *, every: int | Schedule, sinks: Sinks, options: Mapping[str, Any]) -> None:
        self._checked = WatchOptions.from_keywords({**options, "every": every, "sinks": sinks})
        # A command line passes all options, and a checkpoint should name those that were chosen.
        chosen = {name: value for name, value in options.items() if not is_default(name, value)}
        self.options = {name: _plain(value) for name, value in {"every": every, **chosen}.items()}
        self.sinks = list(listed(sinks))
        self._rules = [rule.name for rule in self._checked.alert_config.rules]

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the object itself: the user's sinks and functions are not copied with a callback."""
        return self

    @property
    def is_strict(self) -> bool:
        """Option `strict`: failures are raised, for tests."""
        return self._checked.strict

    def watch(
        self,
        model: Any,
        optimizer: Any,
        *,
        first_step: int,
        hosts_own: Callable[[], HostsOwn] | None,
        asks: Schedule | None = None,
    ) -> Monitor | None:
        """Return a monitor that the trainer steps; None if it cannot be created, which is logged.

        Args:
            model: the model in training.
            optimizer: the trainer's optimizers, one or several, of any class.
            first_step: steps of the trainer so far.
            hosts_own: returns the sinks for "auto"; None to write nothing.
            asks: additional steps at which the trainer needs a reading.

        Raises:
            InputError: for options that do not fit this model.
        """
        every = self._checked.every if asks is None else union(self._checked.every, asks)
        opened = [] if hosts_own is None else self._sinks(hosts_own)
        sinks = [sink for _, sink in opened]
        try:
            options = replace(self._checked, every=every, sinks=sinks)
            monitor = attach(model, readable(optimizer), options, hook=False, first_step=first_step)
        except InputError:
            raise
        except Exception as error:
            if self.is_strict:
                raise
            _log.warning(
                "esdmon: the model cannot be monitored: %s. Training continues without a monitor.", describe(error)
            )
            return None
        if opened:
            notice(destinations([name for name, _ in opened]))
        return monitor

    def summary(self, report: Report | None, before: Mapping[str, float]) -> dict[str, float]:
        """Return all numbers of a summary by their metric names, also before the first reading.

        `alpha_median` is the median over the layers whose alpha is meaningful; while there are none, over all layers.

        Args:
            report: the last reading.
            before: earlier values, kept for numbers that the reading lacks; NaN if there is none.
        """
        empty = Report(step=0, layers=(), coverage=Coverage(0, 0))
        unknown = {f"{name}_median": math.nan for name in SUMMARISED} | {f"alert_{rule}": 0.0 for rule in self._rules}
        numbers = summary_tags(unknown | empty.summary) | dict(before)
        if report is not None:
            found = _alpha_of_all(report) | report.summary
            numbers |= {tag: value for tag, value in summary_tags(found).items() if math.isfinite(value)}
        return numbers

    def warn_of_unknown(self, monitored: Mapping[str, str]) -> None:
        """Log a warning for each monitored number that will never have a value.

        Args:
            monitored: the name of each number, with the callback that monitors it.
        """
        known = self.summary(None, {})
        measures = {measure.name for measure in self._checked.chosen_measures}
        missing = {f"{PREFIX}{name}_median": name for name in SUMMARISED if name not in measures}
        for name, who in monitored.items():
            if name not in known:
                _log.warning("esdmon: %s monitors %s: unknown metric.%s", who, name, nearest(name, known))
            elif name in missing:
                _log.warning(
                    "esdmon: %s monitors %s, which is not computed: add %r to measures=.", who, name, missing[name]
                )

    def _sinks(self, hosts_own: Callable[[], HostsOwn]) -> list[tuple[str, str | Sink]]:
        """Return the sinks with their names, without loggers of the trainer that cannot be opened."""
        sinks: list[tuple[str, str | Sink]] = []
        for given in self.sinks:
            if given != "auto":
                sinks.append((shown(given) if isinstance(given, str) else type(given).__name__, given))
                continue
            for name, make in self._tried("the host's loggers", lambda: list(hosts_own())) or ():
                sink = self._tried(name, lambda make=make: self._opened(make()))  # type: ignore[misc]
                if sink is not None:
                    sinks.append((name, sink))
        return sinks

    def _opened(self, sink: str | Sink) -> Sink:
        return self._checked.known.open_sink(sink) if isinstance(sink, str) else sink

    def _tried(self, name: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:
            if self.is_strict:
                raise
            _log.warning("esdmon: readings are not written to %s: %s. Training continues.", name, describe(error))
            return None


def destinations(names: Sequence[str]) -> str:
    """Return the log line with the destinations of the readings."""
    return f"readings go to {', '.join(names)}"


def _alpha_of_all(report: Report) -> dict[str, float]:
    values = [layer.measures.get("alpha", math.nan) for layer in report if layer.status == "ok"]
    finite = [value for value in values if math.isfinite(value)]
    return {"alpha_median": median(finite)} if finite else {}


def _plain(value: Any) -> Any:
    """Convert an option for JSON: a numpy number to Python's, a path to text."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
