"""Runs that need no training: reports with given phases, written by the real sinks."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path

from esdmon.records import Alert, Coverage, LayerReport, Report
from esdmon.sinks import JsonlSink
from esdmon.spectrum import Phase
from esdmon.testing import reports
from esdmon_tensorboard import TensorBoardSink

R, B, S, D, H, C = list(Phase)[:6]
PHASES: dict[str, Sequence[Phase]] = {
    "blocks.0.fc": (R, R, R, S, S, S, D, D, D, D),
    "blocks.1.fc": (R, B, S, S, D, H, H, C, C, C),
    "blocks.10.fc": (R, R, B, B, B, S, S, S, S, S),
    "blocks.2.fc": (R,) * 10,
    "out": (Phase.UNCLASSIFIED,) * 10,
}
"""Phases of each layer at the steps 10, 20, …"""
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"


@cache
def a_layer() -> LayerReport:
    """Return a layer with a spectrum."""
    return reports()[0].layers[0]


def report_at(step: int, phases: Mapping[str, Phase], *, waiting: Sequence[str] = ()) -> Report:
    """Return a report in which each layer was read; alpha differs from layer to layer and from step to step."""
    layers = tuple(
        replace(
            a_layer(), name=name, step=step, phase=phase, measures={**a_layer().measures, "alpha": 2 + k + step / 1000}
        )
        for k, (name, phase) in enumerate(phases.items())
    )
    return Report(step, layers, Coverage(0, 0), waiting=tuple(waiting))


def made_reports(phases: Mapping[str, Sequence[Phase]] = PHASES, *, first: int = 0) -> list[Report]:
    """Return a report for each phase, at the steps 10, 20, …, from the index `first` on."""
    count = len(next(iter(phases.values())))
    return [report_at(10 * (k + 1), {name: row[k] for name, row in phases.items()}) for k in range(first, count)]


def alert_at(step: int, layer: str, *, state: str = "firing", rule: str = "rank_collapse") -> Alert:
    """Return an alert that began ten steps before."""
    message = f"{layer}: {rule}: rank 40 of 64, in 3 checks since step {step - 10}. Lower the weight decay."
    return Alert(f"{rule}:{layer}", rule, "error", state, layer, (layer,), step, step - 10, message)  # type: ignore[arg-type]


def write(
    folder: Path,
    found: Sequence[Report],
    alerts: Sequence[Alert] = (),
    *,
    run: str = "aa",
    rewind: int | None = None,
    events: bool = True,
) -> None:
    """Write reports to a JSONL in a folder, and to event files, as a monitor does, each alert behind its report."""
    sinks: list[TensorBoardSink | JsonlSink] = [TensorBoardSink.open(str(folder))] if events else []
    for sink in (*sinks, JsonlSink(folder / "esdmon.jsonl")):
        with closing(sink):
            _write(sink, found, alerts, run=run, rewind=rewind)


def _write(
    sink: TensorBoardSink | JsonlSink, found: Sequence[Report], alerts: Sequence[Alert], *, run: str, rewind: int | None
) -> None:
    sink.start(run)
    if rewind is not None:
        sink.rewind(rewind)
    for report in found:
        sink.write(report)
        for alert in alerts:
            if alert.step == report.step:
                sink.alert(alert)
