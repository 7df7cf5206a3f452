"""Convert the summary of a report to metrics of a Trainer, which other callbacks and schedulers can monitor."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from statistics import median
from typing import final

from esdmon.errors import nearest
from esdmon.present.scalars import summary_tags
from esdmon.records import SPREAD, SUMMARISED, Coverage, Report
from esdmon.spectrum import Measure

PREFIX = "esdmon_summary/"
"""The first part of each metric's name."""

_NONE_SCREENED = {"layers_screened": 0.0}
"""A report has this number only where it is not zero."""

_log = logging.getLogger("esdmon")


@final
class SummaryMetrics:
    """The metrics of a run. All of them exist from its start, so that callbacks can monitor them.

    Args:
        rules: names of the checked alert rules; each has a metric `alert_<rule>`.
        measures: names of the computed measures.
    """

    def __init__(self, rules: Iterable[str], measures: Iterable[Measure]) -> None:
        self._rules = tuple(rules)
        self._measures = frozenset(measure.name for measure in measures)

    def of(self, report: Report | None, before: Mapping[str, float]) -> dict[str, float]:
        """Return all metrics by name.

        Alpha is the median over the layers with a meaningful alpha. Without such a layer it is the median over all
        layers, which describes noise.

        Args:
            report: the latest report; None before the first.
            before: the previous metrics. A metric without a value in the report keeps its previous value, else it is
                NaN.
        """
        empty = Report(step=0, layers=(), coverage=Coverage(0, 0))
        statistics = [*(f"{name}_median" for name in SUMMARISED), *(f"{name}_spread" for name in SPREAD)]
        unknown = dict.fromkeys(statistics, math.nan) | {f"alert_{rule}": 0.0 for rule in self._rules} | _NONE_SCREENED
        numbers = summary_tags(unknown | empty.summary) | dict(before)
        if report is not None:
            found = _alpha_of_all(report) | _NONE_SCREENED | report.summary
            numbers |= {tag: value for tag, value in summary_tags(found).items() if math.isfinite(value)}
        return numbers

    def warn_of_unknown(self, monitored: Mapping[str, str]) -> None:
        """Log a warning for each monitored metric that never gets a value.

        Args:
            monitored: names of metrics, each with the class that monitors it.
        """
        known = self.of(None, {})
        missing = {f"{PREFIX}{name}_median": name for name in SUMMARISED if name not in self._measures}
        for name, who in monitored.items():
            if name not in known:
                _log.warning("esdmon: %s monitors %s, which esdmon does not log.%s", who, name, nearest(name, known))
            elif name in missing:
                _log.warning(
                    "esdmon: %s monitors %s, which stays NaN: its measure is not computed. Add %r to measures=.",
                    who,
                    name,
                    missing[name],
                )


def saved_metrics(saved: object) -> dict[str, float]:
    """Return the metrics in a checkpoint, which may be damaged: entries that are not a number by name are dropped."""
    if not isinstance(saved, Mapping):
        return {}
    return {name: float(value) for name, value in saved.items() if isinstance(name, str) and isinstance(value, float)}


def _alpha_of_all(report: Report) -> dict[str, float]:
    """Return the median alpha of the layers in the summary, meaningful or not."""
    ok = [layer for layer in report if layer.status == "ok" and layer.is_followed]
    values = [layer.measures.get("alpha", math.nan) for layer in ok]
    finite = [value for value in values if math.isfinite(value)]
    return {"alpha_median": median(finite)} if finite else {}
