"""Log to trackio: numbers, histograms of log₁₀ λ, a table of phases, and alerts with trackio's levels and webhooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from esdmon.sinks import ScalarLoggerSink
from esdmon.sinks.scalar_logger import counter_kept, level_of, title_of

if TYPE_CHECKING:
    from esdmon.records import Alert, Esd
    from esdmon.sinks.scalar_logger import Table

COUNTER = "_next_step"
"""Attribute of a run with the step of its next row without one."""


def active_sink(*, beside_rows: str = "") -> ScalarLoggerSink | None:
    """Return `sink_for` the active run; None if there is none."""
    from trackio import context_vars  # noqa: PLC0415 -- optional

    run = context_vars.current_run.get()
    return None if run is None else sink_for(run, beside_rows=beside_rows)


def sink_for(run: Any, *, beside_rows: str = "") -> ScalarLoggerSink:
    """Return a sink for a run, a `trackio.Run`.

    Args:
        run: the run.
        beside_rows: for a host that logs rows without steps, which trackio numbers itself: the key of the step in a
            reading, which is placed beside the host's last row. Empty for a host that logs with steps.
    """
    import trackio  # noqa: PLC0415 -- optional

    def log(values: dict[str, Any], step: int) -> None:
        rows = getattr(run, COUNTER, 0)
        if beside_rows:
            values, step = values | {beside_rows: step}, min(step, rows - 1) if rows else step
        with counter_kept(run, COUNTER):
            run.log(values, step=step)

    def alert(alert: Alert, step: int) -> None:
        level = trackio.AlertLevel[level_of(alert)]
        run.alert(title=title_of(alert), text=alert.message, level=level, step=step)

    def histograms(esds: dict[str, Esd], step: int) -> None:
        made = {
            name: trackio.Histogram(np_histogram=(np.array(esd.counts), np.array(esd.edges)))
            for name, esd in esds.items()
        }
        log(made, step)

    def table(name: str, table: Table, step: int) -> None:
        log({name: trackio.Table(columns=list(table[0]), data=table[1])}, step)

    return ScalarLoggerSink(log, place=run, alert=alert, histograms=histograms, table=table)
