"""Log to MLflow: numbers as metrics, messages of alerts as tags of the run, the phases as an artifact.

Numbers and tags are sent by MLflow's own thread (`synchronous=False`), so that training does not wait for a server.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from esdmon.present.scalars import tag
from esdmon.records import severity_word
from esdmon.sinks import ScalarLoggerSink

if TYPE_CHECKING:
    from esdmon.records import Alert
    from esdmon.sinks.scalar_logger import Table

MAX_METRICS = 1000
"""Largest number of metrics in one call of MLflow (`mlflow.utils.validation.MAX_METRICS_PER_BATCH`)."""
_MAX_PENDING = 64  # number of calls whose failures `flush` checks; our choice


def active_sink() -> ScalarLoggerSink | None:
    """Return a sink for the active run; None if there is none."""
    import mlflow  # noqa: PLC0415 -- optional

    run = mlflow.active_run()
    return None if run is None else sink_for_run(run.info.run_id)


def sink_for_run(run_id: str) -> ScalarLoggerSink:
    """Return a sink for a run of the current tracking server."""
    import mlflow  # noqa: PLC0415 -- optional

    return sink_for(mlflow.MlflowClient(), run_id)


def sink_for(client: Any, run_id: str) -> ScalarLoggerSink:
    """Return a sink for a run.

    Args:
        client: an `mlflow.MlflowClient`.
        run_id: the id of the run.
    """
    from mlflow.entities import Metric, RunTag  # noqa: PLC0415 -- optional

    pending: deque[Any] = deque(maxlen=_MAX_PENDING)

    def log(numbers: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in numbers.items()]
        for first in range(0, len(metrics), MAX_METRICS):
            batch = metrics[first : first + MAX_METRICS]
            pending.append(client.log_batch(run_id, metrics=batch, synchronous=False))

    def alert(alert: Alert, step: int) -> None:
        text = f"{severity_word(alert.severity)}, {alert.state} at step {step}: {alert.message}"
        words = RunTag(tag("alert", alert.rule), text)
        pending.append(client.log_batch(run_id, tags=[words], synchronous=False))

    def table(name: str, table: Table, _step: int) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([table[0], *table[1]])
        client.log_text(run_id, text.getvalue(), f"esdmon/{name}.csv")

    def flush() -> None:
        while pending:
            pending.popleft().wait()

    return ScalarLoggerSink(log, flush, place=sys.intern(f"the MLflow run {run_id}"), alert=alert, table=table)
