"""Log to SwanLab: numbers, messages of alerts as texts, histograms of log₁₀ λ as bar charts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esdmon.present.scalars import tag
from esdmon.sinks import ScalarLoggerSink
from esdmon.sinks.scalar_logger import counter_kept, title_of

if TYPE_CHECKING:
    from esdmon.records import Alert, Esd

COUNTER = "_global_step"
"""Attribute of a run's context with the step of its last row."""


def active_sink() -> ScalarLoggerSink | None:
    """Return a sink for the active run; None if there is none."""
    import swanlab  # noqa: PLC0415 -- optional

    return sink_for(swanlab.get_run()) if swanlab.has_run() else None


def sink_for(run: Any) -> ScalarLoggerSink:
    """Return a sink for a run, a `swanlab.Run`."""
    import swanlab  # noqa: PLC0415 -- optional

    def log(values: dict[str, Any], step: int) -> None:
        with counter_kept(getattr(run, "_ctx", None), COUNTER):
            run.log(values, step=step)

    def alert(alert: Alert, step: int) -> None:
        log({tag("alert", alert.rule): swanlab.Text(alert.message, caption=title_of(alert))}, step)

    def histograms(esds: dict[str, Esd], step: int) -> None:
        log({name: _bars(esd) for name, esd in esds.items()}, step)

    where = str(run.url) if run.mode == "online" else f"`swanlab sync {run.dir}`"
    return ScalarLoggerSink(log, place=run, alert=alert, histograms=histograms, where=where)


def _bars(esd: Esd) -> Any:
    """Return a bar chart of a histogram."""
    import swanlab  # noqa: PLC0415 -- optional

    bars = swanlab.echarts.Bar()
    bars.add_xaxis([f"{edge:.2f}" for edge in esd.edges[:-1]])
    bars.add_yaxis("eigenvalues by log10", list(esd.counts))
    return bars
