"""Keep the readings that rules look back on: the last of each layer, its first, and its baseline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import final

from esdmon.alerts.rule import AlertRule, Counts, History, has_moved, is_pruned
from esdmon.alerts.rules.baseline import RECENT
from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain, layer_from, to_plain

WINDOW = 16
"""Readings of a layer that rules may look back on."""
_STEPS = 128  # of reports that are remembered, where no rule looks back further
Series = dict[str, deque[LayerReport]]


@final
class Memory:
    """Readings by layer, without their spectra.

    Args:
        reports: how many reports the rules look back on at most.
    """

    def __init__(self, reports: int = 0) -> None:
        self._read: Series = {}
        self._moved: Series = {}
        self._baseline: Series = {}
        self._first: dict[str, LayerReport] = {}
        self._steps: deque[int] = deque(maxlen=max(_STEPS, reports))
        self._excluded: dict[str, tuple[int, int]] = {}
        """The steps between which an alert was about a layer, last."""

    def take(self, report: Report) -> list[str]:
        """Remember what was read, and the report. Returns the layers that are gone."""
        gone = self._read.keys() - {*(layer.name for layer in report), *report.waiting}
        for name in gone:
            for series in (self._read, self._moved, self._baseline, self._first, self._excluded):
                series.pop(name, None)
        self._steps.append(report.step)
        for layer in report.new:
            kept = replace(layer, esd=None)
            _append(self._read, kept)
            if has_moved(layer):
                _append(self._moved, kept)
                self._first.setdefault(layer.name, kept)
        return list(gone)

    def exclude(self, name: str, since: int, step: int) -> None:
        """An alert is about a layer, and has been since a step: these readings are not what it is like."""
        before = self._excluded.get(name)
        if before is not None and before[1] >= since:
            since = min(since, before[0])
        self._excluded[name] = since, step
        baseline = self._baseline.get(name, ())
        self._baseline[name] = deque((layer for layer in baseline if not since <= layer.step <= step), maxlen=WINDOW)

    def recovered(self, name: str, step: int) -> None:
        """An alert about a layer has ended: what it is like from now on has yet to be seen, beginning with now."""
        self._baseline.pop(name, None)
        self._excluded[name] = 0, step
        if self._moved.get(name):  # empty where a layer was resumed that has not moved since
            self._first[name] = self._moved[name][-1]

    def settle(self, report: Report) -> None:
        """Count as baseline the readings that are old enough to know that no alert has come of them."""
        for layer in report.new:
            moved = self._moved.get(layer.name, ())
            if has_moved(layer) and len(moved) > RECENT:
                since, until = self._excluded.get(layer.name, (0, -1))
                if not since <= moved[-1 - RECENT].step <= until:
                    _append(self._baseline, moved[-1 - RECENT])

    def history(self, rule: AlertRule, report: Report, firing: Mapping[str, Mapping[str, float]]) -> History:
        """What a rule may look at."""
        kept = self._moved if rule.counts == "moves" else self._read
        names = [
            layer.name for layer in report if _is_checked(rule.counts, layer, report.step) and _concerns(rule, layer)
        ]
        layers = {name: tuple(kept[name]) for name in names if name in kept}
        return History(
            report=report,
            layers=layers,
            first={name: self._first.get(name, layers[name][0]) for name in layers},
            baseline={name: tuple(self._baseline.get(name, ())) for name in layers},
            firing=firing,
            steps=tuple(self._steps),
        )

    def state_dict(self) -> Plain:
        """Each reading once, and in which series it stands."""
        return {
            "first": {name: to_plain(layer) for name, layer in self._first.items()},
            "steps": list(self._steps),
            "unwell": {name: list(steps) for name, steps in self._excluded.items()},
            "layers": {name: self._plain(name) for name in self._read},
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse it, and return what goes on from it."""
        series: tuple[Series, Series, Series] = {}, {}, {}
        for name, kept in state["layers"].items():
            readings = [layer_from(layer) for layer in kept["readings"]]
            for which, steps in zip(series, kept["steps"], strict=True):
                which[name] = deque((layer for layer in readings if layer.step in steps), maxlen=WINDOW)
        first = {name: layer_from(layer) for name, layer in state["first"].items()}
        excluded = {name: (since, until) for name, (since, until) in state["unwell"].items()}
        steps = deque(map(int, state["steps"]), maxlen=self._steps.maxlen)

        def take_over() -> None:
            self._read, self._moved, self._baseline = series
            self._first, self._excluded, self._steps = first, excluded, steps

        return take_over

    def _plain(self, name: str) -> Plain:
        several = [series.get(name, ()) for series in (self._read, self._moved, self._baseline)]
        readings = {layer.step: layer for series in several for layer in series}
        return {
            "readings": [to_plain(readings[step]) for step in sorted(readings)],
            "steps": [[layer.step for layer in series] for series in several],
        }


def _append(series: Series, layer: LayerReport) -> None:
    series.setdefault(layer.name, deque(maxlen=WINDOW)).append(layer)


def _is_checked(counts: Counts, layer: LayerReport, step: int) -> bool:
    if counts == "reports":
        return True
    return layer.step == step and (counts == "readings" or (has_moved(layer) and not is_pruned(layer)))


def _concerns(rule: AlertRule, layer: LayerReport) -> bool:
    def matches(patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(layer.name, pattern) for pattern in patterns)

    return matches(rule.layers) and not matches(rule.exclude)
