"""Log to Comet: numbers, messages of alerts as texts, histograms of λ, a table of phases."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from esdmon.sinks import ScalarLoggerSink
from esdmon.sinks.scalar_logger import counter_kept, title_of

if TYPE_CHECKING:
    from esdmon.records import Alert, Esd
    from esdmon.sinks.scalar_logger import Table

COUNTER = "curr_step"
"""Attribute of an experiment with the step of values that are logged without a step."""


def active_sink() -> ScalarLoggerSink | None:
    """Return a sink for the running experiment; None if there is none."""
    import comet_ml  # noqa: PLC0415 -- optional

    experiment = comet_ml.get_running_experiment()
    return None if experiment is None else sink_for(experiment)


def sink_for(experiment: Any) -> ScalarLoggerSink:
    """Return a sink for an experiment, of any of Comet's classes."""

    def log(numbers: dict[str, float], step: int) -> None:
        with counter_kept(experiment, COUNTER):
            experiment.log_metrics(numbers, step=step)

    def alert(alert: Alert, step: int) -> None:
        about = {"rule": alert.rule, "severity": alert.severity, "state": alert.state, "layers": list(alert.layers)}
        with counter_kept(experiment, COUNTER):
            experiment.log_text(f"{title_of(alert)}: {alert.message}", step=step, metadata=about)

    def histograms(esds: dict[str, Esd], step: int) -> None:
        from comet_ml.data_structure import Histogram  # noqa: PLC0415 -- optional

        with counter_kept(experiment, COUNTER):
            for name, esd in esds.items():
                counted = Histogram()  # each of its bins is a tenth wider than the last, so it gets λ instead of log λ
                counted.add(_centres(esd), counts=list(esd.counts))
                experiment.log_histogram_3d(counted, name=name, step=step)

    def table(name: str, table: Table, _step: int) -> None:
        experiment.log_table(f"{name}.csv", tabular_data=table[1], headers=list(table[0]))

    where = str(experiment.url or "")
    return ScalarLoggerSink(log, place=experiment, alert=alert, histograms=histograms, table=table, where=where)


def _centres(esd: Esd) -> list[float]:
    """Return λ in the middle of each bin."""
    return [10 ** ((low + high) / 2) for low, high in pairwise(esd.edges)]
