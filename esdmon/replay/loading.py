"""Define `load`, which returns the readings of a finished or a running run from its JSONL."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from esdmon.calls import explain_wrong_calls
from esdmon.encoding import printed
from esdmon.errors import InputError
from esdmon.present.scalars import kinds
from esdmon.records import Alert, LayerReport, Report, html
from esdmon.records.frame import to_frame
from esdmon.records.outcome import outcome
from esdmon.records.plots import Rows, plot_course
from esdmon.records.text import count, near_or_first
from esdmon.records.timeline import Timeline
from esdmon.replay.events import RunState, events_by_run
from esdmon.replay.files import find_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """The readings and alerts of one run. `print(run)` shows a summary, `run.last` is the last report."""

    path: Path
    """The JSONL file that the run was read from."""
    reports: tuple[Report, ...]
    """All reports, in order of steps; at least one. Each has the latest reading of every layer up to its step."""
    alerts: tuple[Alert, ...]
    """Alerts that began, grew and ended, in order."""
    number: int = 1
    """Position of the run among the runs of the file, counted from 1."""
    count: int = 1
    """Number of runs in the file."""
    timeline: Timeline = field(init=False, repr=False)
    """The phases of each layer with their first steps, and the beginning and end of each alert."""

    def __post_init__(self) -> None:
        """Build the timeline."""
        timeline = Timeline()
        for report in self.reports:
            timeline.take(report)
        for alert in self.alerts:
            timeline.alert(alert)
        object.__setattr__(self, "timeline", timeline)

    @property
    def last(self) -> Report:
        """Return the last report."""
        return self.reports[-1]

    @explain_wrong_calls
    def readings(self, name: str) -> tuple[LayerReport, ...]:
        """Return the readings of a layer, in order of steps, each once.

        Raises:
            KeyError: for an unknown name, with the nearest known ones.
        """
        found = tuple(layer for report in self.reports for layer in report.new if layer.name == name)
        if not found:
            raise KeyError(f"unknown layer {name!r}.{near_or_first(name, (layer.name for layer in self.last))}")
        return found

    @explain_wrong_calls
    def spectrum(self, name: str, step: float = math.inf) -> LayerReport:
        """Return the latest reading of a layer that has a spectrum to plot: `run.spectrum("fc1").plot()`.

        Args:
            name: name of the layer.
            step: the last step that is considered.

        Raises:
            KeyError: for an unknown name.
            InputError: if no reading up to `step` has a spectrum, as in files of older versions.
        """
        considered = [layer for layer in self.readings(name) if layer.step <= step]
        with_spectrum = [layer for layer in considered if layer.esd is not None]
        until = "" if step == math.inf else f" up to step {step}"
        if considered and all(layer.reason for layer in considered):
            raise InputError(f"{self.path} has no spectrum of {name}{until}: {considered[-1].reason}")
        if not with_spectrum:
            raise InputError(f"{self.path} has no spectrum of {name}{until}: older versions wrote none. Watch again.")
        return with_spectrum[-1]

    def to_dataframe(self) -> pd.DataFrame:
        """Return a table of pandas with a row for each layer and reading, and the columns of `Report.to_records`.

        Raises:
            MissingExtraError: without pandas, which is optional.
        """
        return to_frame([layer.to_record() for report in self.reports for layer in report.new])

    def plot(self) -> Figure:
        """Draw the phases of all layers over the steps, with the alerts, and alpha where it is meaningful.

        Raises:
            MissingExtraError: without matplotlib, which is optional.
        """
        return plot_course(self._rows())

    def __str__(self) -> str:
        """Return a summary: layers by phase, changes of phase, alerts."""
        return printed("\n".join(self._lines()))

    def _lines(self) -> list[str]:
        of = f", run {self.number} of {self.count}" if self.count > 1 else ""
        return [f"{self.path}{of}: {len(self.reports)} reports", *outcome(self.timeline)]

    def __repr__(self) -> str:
        """Return the summary of `__str__`."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return HTML for notebooks."""
        first, *others = self._lines()
        return html.page(html.paragraph(html.strong(first)), *others)

    def _rows(self) -> Rows:
        by_kind = kinds([layer.name for layer in self.last])  # neighbours on a map then look alike
        names = [name for members in by_kind.values() for name in members]
        states: dict[str, list[str]] = {name: [] for name in names}
        alphas: dict[str, list[float]] = {name: [] for name in names}
        for report in self.reports:
            layers = {layer.name: layer for layer in report}
            for name in names:
                layer = layers.get(name)
                states[name].append("" if layer is None else layer.state)
                is_meaningful = layer is not None and layer.alpha_is_meaningful
                alphas[name].append(layer.measures["alpha"] if layer is not None and is_meaningful else math.nan)
        began = [
            (episode.began, name)
            for episode in self.timeline.episodes
            if episode.alert.severity != "info"
            for name in episode.alert.layers
        ]
        return Rows([report.step for report in self.reports], states, alphas, began)


@explain_wrong_calls
def load(run: str | Path, *, number: int | None = None) -> Run:
    """Read a run from its JSONL. If the run is still in progress, return it up to the last written line.

    An incomplete line, from a process that was killed, is skipped. If a run was resumed at an earlier step, lines that
    were written before the resumption for later steps are ignored.

    Args:
        run: a file `.jsonl` or `.jsonl.gz`, or the folder that contains an `esdmon.jsonl`.
        number: for a file with several runs, the position of the run, counted from 1 in the order in which they began;
            by default the last run.

    Raises:
        InputError: if the file does not exist, is not a JSONL of esdmon or has no readings, or if `number` is out of
            range.

    >>> import esdmon, tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> model = torch.nn.Linear(64, 64)
    >>> with esdmon.watch(model, every=1, sinks=f"jsonl:{folder}/esdmon.jsonl") as monitor:
    ...     _ = monitor.step()
    >>> [layer.M for layer in load(folder).last]
    [64]
    """
    path = find_file(run)
    runs = _joined(events_by_run(path))
    if number is not None and not 1 <= number <= len(runs):
        raise InputError(f"number={number} is out of range: {path} contains {count(len(runs), 'run')}, counted from 1.")
    chosen = len(runs) if number is None else number
    reports, alerts = runs[chosen - 1]
    return Run(path, tuple(reports), tuple(alerts), chosen, len(runs))


def _joined(events: Iterable[tuple[RunState, Report | Alert]]) -> list[tuple[list[Report], list[Alert]]]:
    """Return the reports and alerts of each run; the parts of a resumed run are joined."""
    parts: dict[RunState, tuple[list[Report], list[Alert]]] = {}
    for part, event in events:
        reports, alerts = parts.setdefault(part, ([], []))
        if isinstance(event, Report):
            reports.append(event)
        else:
            alerts.append(event)
    runs: dict[object, tuple[list[Report], list[Alert]]] = {}
    for part, (reports, alerts) in parts.items():
        if not reports:
            continue
        key = part.run or part
        runs[key] = _continued(*runs[key], reports, alerts) if key in runs else (reports, alerts)
    return list(runs.values())


def _continued(
    before: list[Report], alerts_before: list[Alert], reports: list[Report], alerts: list[Alert]
) -> tuple[list[Report], list[Alert]]:
    """Join a run with its continuation from an earlier step, which lacks the layers that it has not read yet."""
    first = reports[0].step
    kept = [report for report in before if report.step < first]
    carried = {layer.name: layer for layer in kept[-1]} if kept else {}
    joined = [replace(report, layers=tuple(_with(report, carried))) for report in reports]
    return [*kept, *joined], [*(alert for alert in alerts_before if alert.step < first), *alerts]


def _with(report: Report, carried: dict[str, LayerReport]) -> Iterator[LayerReport]:
    read = {layer.name: layer for layer in report}
    yield from (read.pop(name, layer) for name, layer in carried.items())
    yield from read.values()
