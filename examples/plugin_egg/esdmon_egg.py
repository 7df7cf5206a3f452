"""A plugin for esdmon: a measure, an alert rule on it, and a sink."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import final

import esdmon
from esdmon.alerts import AlertRule, Finding, History
from esdmon.sinks import Sink
from esdmon.spectrum import Measure, Spectrum


def top_share(spectrum: Spectrum) -> float:
    """Return λmax/Σλ, between 1/M and 1: the share of a layer's energy in its strongest direction."""
    total = float(spectrum.eigenvalues.sum())
    return spectrum.lambda_max / total if total > 0 else float("nan")


def top_heavy(history: History, *, share: float = 0.5) -> Iterable[Finding]:
    """One direction holds most of a layer.

    Fires when the share of the largest eigenvalue in their sum is above 0.5.

    Source: this example.
    """
    for name, readings in history.layers.items():
        value = readings[-1].measures.get("top_share", 0.0)
        if value > share:
            yield Finding(name, f"its strongest direction holds {value:.0%} of it", {"top_share": value})


@final
class EggSink:
    """Writes a line of CSV for each layer that is read (step, name, share) and for each alert."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def write(self, report: esdmon.Report) -> None:
        """Write a line for each layer that was read at this step."""
        self._append([report.step, layer.name, layer.measures.get("top_share")] for layer in report.new)

    def alert(self, alert: esdmon.Alert) -> None:
        """Write a line with the message."""
        self._append([[alert.step, alert.layer, f"{alert.rule} {alert.state}"]])

    def flush(self) -> None:
        """Do nothing: each write is flushed."""

    def close(self) -> None:
        """Do nothing: no file is held open."""

    def _append(self, lines: Iterable[list[object]]) -> None:
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)


@esdmon.hookimpl
def esdmon_register_measures() -> Iterable[Measure]:
    """Add `top_share` to every report and chart."""
    return [Measure("top_share", top_share)]


@esdmon.hookimpl
def esdmon_register_alert_rules() -> Iterable[AlertRule]:
    """Add the rule `top_heavy`; `[rules.top_heavy]` in a TOML file sets its threshold."""
    return [AlertRule("top_heavy", top_heavy, needs=("top_share",), advice="Look at that direction.")]


@esdmon.hookimpl
def esdmon_register_sinks() -> Mapping[str, Callable[[str], Sink]]:
    """Add the sink `egg:PATH`."""
    return {"egg": EggSink}
