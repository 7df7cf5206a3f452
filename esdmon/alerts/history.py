"""Keep past readings for the rules: the last ones of each layer, its first one, and its baseline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import final

from esdmon.alerts.rule import AlertRule, Counts, History, Pause, Peak, has_moved, is_pruned
from esdmon.alerts.rules.baseline import RECENT
from esdmon.records import LayerReport, Report
from esdmon.records.serialization import Plain, known, layer_from_plain, to_plain
from esdmon.records.table import matches

WINDOW = 16
"""Readings kept of each layer, and in its baseline. Our choice."""
_STEPS = 128  # steps of reports kept, where no rule looks back further
Series = dict[str, deque[LayerReport]]


@final
class ReadingHistory:
    """Past readings by layer, without their spectra.

    Args:
        reports: the largest number of reports that a rule looks back on.
    """

    def __init__(self, reports: int) -> None:
        self._read: Series = {}
        self._moved: Series = {}
        self._baseline: Series = {}
        self._first: dict[str, LayerReport] = {}
        self._steps: deque[int] = deque(maxlen=max(_STEPS, reports))
        self._extra: Series = {}
        """Extra readings since the last scheduled one. They do not enter baselines: these are evenly spaced."""
        self._previous: dict[str, LayerReport] = {}
        """For each layer that was read in the last report: the reading before."""
        self._peaks: dict[str, Peak] = {}
        self._pauses: dict[str, Pause] = {}
        self._excluded: dict[str, tuple[int, int]] = {}
        """First and last step of the latest alert about a layer."""

    def take(self, report: Report) -> list[str]:
        """Add the readings of a report, and return the layers that the model no longer has, or has in another shape.

        A layer of another shape has other values without any fault, so it begins a new history.
        """
        gone = self._read.keys() - {*(layer.name for layer in report), *report.waiting}
        gone |= {layer.name for layer in report.new if self._is_reshaped(layer)}
        for name in gone:
            for series in (
                self._read,
                self._moved,
                self._baseline,
                self._first,
                self._extra,
                self._peaks,
                self._pauses,
                self._excluded,
            ):
                series.pop(name, None)
        if not report.extra:
            self._steps.append(report.step)
            self._count_pauses(report)
        self._previous = {layer.name: before for layer in report.new if (before := self._last_ok(layer.name))}
        for layer in report.new:
            kept = replace(layer, esd=None, spectral_shape=())
            if layer.extra:
                _append(self._extra, kept)
                continue
            self._extra.pop(layer.name, None)
            _append(self._read, kept)
            if has_moved(layer):
                _append(self._moved, kept)
                self._first.setdefault(layer.name, kept)
        return list(gone)

    def exclude(self, name: str, since: int, step: int) -> None:
        """Exclude the readings of a layer during an alert from its baseline, until there are `WINDOW` of them.

        Then a new baseline begins, since the layer has gone on to learn and the baseline from before the alert is out
        of date.
        """
        moved = self._moved.get(name) or deque()
        if len(moved) == WINDOW and moved[0].step >= since:
            baseline = self._baseline.get(name, ())
            self._baseline[name] = deque((layer for layer in baseline if layer.step >= since), maxlen=WINDOW)
            return
        before = self._excluded.get(name)
        if before is not None and before[1] >= since:
            since = min(since, before[0])
        self._excluded[name] = since, step
        baseline = self._baseline.get(name, ())
        self._baseline[name] = deque((layer for layer in baseline if not since <= layer.step <= step), maxlen=WINDOW)

    def restart(self, name: str, step: int) -> None:
        """Begin a new baseline and a new first reading when an alert about a layer has ended."""
        self._baseline.pop(name, None)
        self._excluded[name] = 0, step
        if self._moved.get(name):  # empty where a layer was resumed that has not moved since
            self._first[name] = self._moved[name][-1]

    def extend_baselines(self, report: Report) -> None:
        """Add to each baseline the reading before the last `RECENT` ones, unless it was taken during an alert."""
        for layer in report.new:
            moved = self._moved.get(layer.name, ())
            if not layer.extra and has_moved(layer) and len(moved) > RECENT:
                since, until = self._excluded.get(layer.name, (0, -1))
                if not since <= moved[-1 - RECENT].step <= until:
                    _append(self._baseline, moved[-1 - RECENT])
                    self._raise_peak(moved[-1 - RECENT])

    def history(self, rule: AlertRule, report: Report, firing: Mapping[str, Mapping[str, float]]) -> History:
        """Return what a rule reads: the layers it checks in this report, and their past readings."""
        kept = self._moved if rule.counts == "moves" else self._read
        names = [layer.name for layer in report if _is_checked(rule.counts, layer, report) and _concerns(rule, layer)]
        layers = {name: self._readings(kept, name) for name in names if name in kept}
        return History(
            report=report,
            layers=layers,
            first={name: self._first.get(name, layers[name][0]) for name in layers},
            baseline={name: tuple(self._baseline.get(name, ())) for name in layers},
            previous={name: self._previous[name] for name in layers if name in self._previous},
            peak={layer.name: self._peaks.get(layer.name, Peak()) for layer in report},
            firing=firing,
            steps=tuple(self._steps),
            pauses=self._pauses,
        )

    def _is_reshaped(self, layer: LayerReport) -> bool:
        """Return whether a layer has another number of parameters than at its last reading; 0 is not known."""
        before = self._last_ok(layer.name) if layer.status == "ok" else None
        if before is None or 0 in (before.n_parameters, layer.n_parameters):
            return False
        return before.n_parameters != layer.n_parameters

    def _last_ok(self, name: str) -> LayerReport | None:
        readings = reversed(self._readings(self._read, name))
        return next((layer for layer in readings if layer.status == "ok"), None)

    def _readings(self, kept: Series, name: str) -> tuple[LayerReport, ...]:
        return (*kept.get(name, ()), *self._extra.get(name, ()))

    def state_dict(self) -> Plain:
        """Return each reading once, with the series it belongs to. The keys are those of the first version."""
        return {
            "first": {name: to_plain(layer) for name, layer in self._first.items()},
            "steps": list(self._steps),
            "peaks": {name: list(peak) for name, peak in self._peaks.items()},
            "pauses": {name: list(pause) for name, pause in self._pauses.items()},
            "unwell": {name: list(steps) for name, steps in self._excluded.items()},
            "layers": {name: self._plain(name) for name in self._read},
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse a `state_dict()` and return a function that restores it."""
        state = known(state, ("first", "steps", "peaks", "pauses", "unwell", "layers"))
        series: tuple[Series, Series, Series] = {}, {}, {}
        for name, saved in state["layers"].items():
            kept = known(saved, ("readings", "steps"))
            readings = [layer_from_plain(layer) for layer in kept["readings"]]
            for which, steps in zip(series, kept["steps"], strict=True):
                which[name] = deque((layer for layer in readings if layer.step in steps), maxlen=WINDOW)
        first = {name: layer_from_plain(layer) for name, layer in state["first"].items()}
        excluded = {name: (since, until) for name, (since, until) in state["unwell"].items()}
        peaks = {name: Peak(*peak[: len(Peak._fields)]) for name, peak in state.get("peaks", {}).items()}
        pauses = {name: Pause(*map(int, pause)) for name, pause in state.get("pauses", {}).items()}
        steps = deque(map(int, state["steps"]), maxlen=self._steps.maxlen)

        def restore() -> None:
            self._read, self._moved, self._baseline = series
            self._first, self._excluded, self._steps = first, excluded, steps
            self._peaks, self._pauses, self._extra = peaks, pauses, {}

        return restore

    def _raise_peak(self, layer: LayerReport) -> None:
        ratio, rate = self._peaks.get(layer.name, Peak())
        # max() keeps its first argument where the second is NaN.
        self._peaks[layer.name] = Peak(max(ratio, layer.step_ratio), max(rate, layer.learning_rate))

    def _count_pauses(self, report: Report) -> None:
        for layer in report:
            now, longest = self._pauses.get(layer.name, Pause())
            if layer.stands_still:
                self._pauses[layer.name] = Pause(now + 1, longest)
            elif now:
                self._pauses[layer.name] = Pause(0, max(longest, now))

    def _plain(self, name: str) -> Plain:
        """Return a layer's readings in step order, and the steps that each of the three series holds."""
        several = [series.get(name, ()) for series in (self._read, self._moved, self._baseline)]
        readings = {layer.step: layer for series in several for layer in series}
        return {
            "readings": [to_plain(readings[step]) for step in sorted(readings)],
            "steps": [[layer.step for layer in series] for series in several],
        }


def _append(series: Series, layer: LayerReport) -> None:
    series.setdefault(layer.name, deque(maxlen=WINDOW)).append(layer)


def _is_checked(counts: Counts, layer: LayerReport, report: Report) -> bool:
    """Return True if the report is a check of the layer for a rule with these `counts`."""
    is_new = layer.step == report.step
    if counts == "reports":
        return is_new or not report.extra
    return is_new and (counts == "readings" or (has_moved(layer) and not is_pruned(layer)))


def _concerns(rule: AlertRule, layer: LayerReport) -> bool:
    def is_in(patterns: Sequence[str]) -> bool:
        return any(matches(layer.name, pattern) for pattern in patterns)

    return is_in(rule.layers) and not is_in(rule.exclude)
