"""What callbacks for Trainers have in common: options, the host's own sinks and optimizers, states, monitored numbers.

A host is never stopped from here once it trains: what cannot be used is left out, and the log says so once.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Self, final

import numpy as np
from torch.optim import Optimizer

from esdmon.errors import InputError, nearest
from esdmon.isolation import describe
from esdmon.notice import notice
from esdmon.options import WatchOptions
from esdmon.options.sinks import Sinks, listed
from esdmon.options.watch_options import is_default
from esdmon.plugins.manager import shown
from esdmon.present.scalars import summary_tags
from esdmon.records import SUMMARISED, Coverage, Report
from esdmon.runtime.clock import unwrapped
from esdmon.runtime.monitor import Monitor
from esdmon.schedule import Schedule, union
from esdmon.sinks import Sink
from esdmon.torch_private import has_step_hooks
from esdmon.watching import attach

_log = logging.getLogger("esdmon")
PREFIX = "esdmon_summary/"
"""What stands before a number of the summary where a host keeps its metrics."""

HostsOwn = Iterable[tuple[str, Callable[[], str | Sink]]]
"""Sinks of a host: what each is called in messages, and a function that gives it."""


@final
class CallbackOptions:
    """The arguments of a callback, until there is a model. They do not change, and copies of a callback share them.

    Args:
        every: as in `esdmon.watch`.
        sinks: as there, but that "auto" stands for the host's own loggers.
        options: the others of `esdmon.watch`.

    Raises:
        InputError: for any that cannot be used.
    """

    def __init__(self, *, every: int | Schedule, sinks: Sinks, options: Mapping[str, Any]) -> None:
        self._checked = WatchOptions.from_keywords({**options, "every": every, "sinks": sinks})
        # A command line passes all options, and a checkpoint should name those that were chosen.
        chosen = {name: value for name, value in options.items() if not is_default(name, value)}
        self.options = {name: _plain(value) for name, value in {"every": every, **chosen}.items()}
        self.sinks = list(listed(sinks))
        self._rules = [rule.name for rule in self._checked.alert_config.rules]

    def __deepcopy__(self, _memo: object) -> Self:
        """Return the options themselves: sinks and functions of the user's are not copied with a callback."""
        return self

    @property
    def is_strict(self) -> bool:
        """Whether what fails is to be raised, for tests."""
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
        """Return a monitor that the host steps; None where it cannot be made through a fault of ours, which is logged.

        Args:
            model: what trains.
            optimizer: the host's, one or several, of any kind.
            first_step: the host's steps so far.
            hosts_own: gives sinks for what "auto" stands for; None where nothing is to be written.
            asks: says whether the host needs a reading at this step, besides those of `every`.

        Raises:
            InputError: for options that cannot be used with this model.
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
            _log.warning("esdmon: the model cannot be watched: %s. Training goes on without it.", describe(error))
            return None
        if opened:
            notice(destinations([name for name, _ in opened]))
        return monitor

    def summary(self, report: Report | None, before: Mapping[str, float]) -> dict[str, float]:
        """Return every number of a summary by the name that a host monitors, also before the first reading.

        Alpha is the median over the layers where it is meaningful; as long as there are none, over all layers, which
        is that of noise. A number that is not known keeps its value of before, and is NaN until there is one.
        """
        empty = Report(step=0, layers=(), coverage=Coverage(0, 0))
        unknown = {f"{name}_median": math.nan for name in SUMMARISED} | {f"alert_{rule}": 0.0 for rule in self._rules}
        numbers = summary_tags(unknown | empty.summary) | dict(before)
        if report is not None:
            found = _alpha_of_all(report) | report.summary
            numbers |= {tag: value for tag, value in summary_tags(found).items() if math.isfinite(value)}
        return numbers

    def warn_of_unknown(self, monitored: Mapping[str, str]) -> None:
        """Log a line for each number that is monitored and will never be known.

        Args:
            monitored: by name, who monitors it.
        """
        known = self.summary(None, {})
        measures = {measure.name for measure in self._checked.chosen_measures}
        missing = {f"{PREFIX}{name}_median": name for name in SUMMARISED if name not in measures}
        for name, who in monitored.items():
            if name not in known:
                _log.warning("esdmon: %s monitors %s, which is no number of ours.%s", who, name, nearest(name, known))
            elif name in missing:
                _log.warning(
                    "esdmon: %s monitors %s, which is not known: add %r to measures=.", who, name, missing[name]
                )

    def _sinks(self, hosts_own: Callable[[], HostsOwn]) -> list[tuple[str, str | Sink]]:
        """Return the sinks with their names; one of the host's that cannot be made is left out."""
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
            _log.warning("esdmon: readings do not go to %s: %s. Training goes on.", name, describe(error))
            return None


class CopiedByOptions:
    """A callback whose copies and pickles have its options only: what it does in a run belongs to that run."""

    _given: CallbackOptions

    def __getstate__(self) -> dict[str, Any]:
        """Return the options."""
        return {"_given": self._given}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin as if it had just been made with these options."""
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        """Reset what belongs to a run."""
        raise NotImplementedError


def destinations(names: Sequence[str]) -> str:
    """Return the line that says where readings go."""
    return f"readings go to {', '.join(names)}"


def resume(monitor: Monitor, state: Mapping[str, Any], *, steps: int, strict: bool) -> bool:
    """Go on from a state that a host has kept, at the host's steps; where that fails the log says so.

    Returns:
        Whether it was loaded.
    """
    try:
        monitor.load_state_dict(dict(state) | {"steps": steps})
    except Exception as error:
        if strict:
            raise
        _log.warning(
            "esdmon: the state in the checkpoint of step %d cannot be used: %s. The series goes on; alerts and what "
            "was read before are not known.",
            steps,
            describe(error),
        )
        return False
    return True


def own_jsonl(root: str | os.PathLike[str], *, goes_on: bool) -> str:
    """Return the sink for a host without loggers: `esdmon-1/esdmon.jsonl` in the host's folder, one for each run.

    Args:
        root: where the host writes.
        goes_on: whether a run is resumed, which appends to the newest; otherwise the next number is taken.
    """
    files = (Path(root) / f"esdmon-{n}" / "esdmon.jsonl" for n in itertools.count(1))
    newest = file = next(files)
    while file.exists():
        newest, file = file, next(files)
    return f"jsonl:{newest if goes_on else file}"


def readable(optimizers: Any) -> list[Optimizer] | None:
    """Return optimizers that can be asked what they hold, for those of a host, which steps them itself.

    A wrapper is looked into. One that is no torch optimizer needs `param_groups` only. None where there is none, or
    where one of them does not say what it holds: then it is not known which weights are held.
    """
    given = optimizers if isinstance(optimizers, list | tuple) else [optimizers]
    found = [_readable(optimizer) for optimizer in given]
    known = [optimizer for optimizer in found if optimizer is not None]
    return known if known and len(known) == len(found) else None


class _StandIn(Optimizer):
    """What an optimizer of another kind holds. A class of its own, since torch wraps the step of each class."""

    def step(self, closure: Any = None) -> Any:
        """Do nothing: it is asked for what it holds only."""


def _readable(optimizer: Any) -> Optimizer | None:
    inner = unwrapped(optimizer)
    if has_step_hooks(inner):
        return inner
    try:
        groups = inner.param_groups
        stand_in = _StandIn([parameter for group in groups for parameter in group["params"]], {})
    except Exception:  # noqa: BLE001 -- a stranger's, of any kind
        return None
    stand_in.param_groups = groups  # the list itself, so that groups that are added later are seen
    return stand_in


def _alpha_of_all(report: Report) -> dict[str, float]:
    values = [layer.measures.get("alpha", math.nan) for layer in report if layer.status == "ok"]
    finite = [value for value in values if math.isfinite(value)]
    return {"alpha_median": median(finite)} if finite else {}


def _plain(value: Any) -> Any:
    """Return an option as JSON can hold it: numbers of numpy as Python's, a path as text."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
