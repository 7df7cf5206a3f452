"""Log to ClearML: numbers by group and layer, alerts in the console, histograms of log₁₀ λ, a table of phases."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from esdmon.sinks import ScalarLoggerSink
from esdmon.sinks.scalar_logger import level_of, title_of

if TYPE_CHECKING:
    from esdmon.records import Alert, Esd
    from esdmon.sinks.scalar_logger import Table

_LEVELS = {"INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}


def active_sink() -> ScalarLoggerSink | None:
    """Return a sink for the current task; None if there is none."""
    from clearml import Task  # noqa: PLC0415 -- optional

    task = Task.current_task()
    return None if task is None else sink_for(task)


def sink_for(task: Any) -> ScalarLoggerSink:
    """Return a sink for a `clearml.Task`: the tag `esdmon_alpha/fc1` is the series `fc1` of the plot `esdmon_alpha`."""
    logger = task.get_logger()

    def log(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            title, _, series = name.partition("/")
            logger.report_scalar(title, series, value, iteration=step)

    def alert(alert: Alert, step: int) -> None:
        words = f"{title_of(alert)} at step {step}: {alert.message}"
        logger.report_text(words, level=_LEVELS[level_of(alert)], print_console=False)

    def histograms(esds: dict[str, Esd], step: int) -> None:
        for name, esd in esds.items():
            title, _, series = name.partition("/")
            edges = [f"{edge:.2f}" for edge in esd.edges[:-1]]
            logger.report_histogram(
                title, series, list(esd.counts), iteration=step, xlabels=edges, xaxis="log10 λ", yaxis="eigenvalues"
            )

    def table(name: str, table: Table, step: int) -> None:
        rows = [["" if cell is None else cell for cell in row] for row in table[1]]
        logger.report_table(name, "layers", iteration=step, table_plot=[list(table[0]), *rows])

    return ScalarLoggerSink(log, logger.flush, place=task, alert=alert, histograms=histograms, table=table)
