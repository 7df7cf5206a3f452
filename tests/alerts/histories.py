"""Runs made of readings that never were: what a manager of rules says to them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from esdmon.alerts import BUILT_IN_RULES, AlertManager, AlertRule
from esdmon.records import Alert, Coverage, LayerReport, Report
from esdmon.spectrum import Phase

RULES = {rule.name: rule for rule in BUILT_IN_RULES}
HEALTHY = {
    "alpha": 3.0,
    "alpha_high": 3.2,
    "alpha_stderr": 0.1,
    "xmin": 0.02,  # at mean λ = 1 it is 1.6
    "erg_gap": 0.5,
    "hard_rank": 80.0,
    "trap": 0.3,
    "spectral_norm": 4.0,
    "frobenius_norm": 10.0,
    "stable_rank": 20.0,
    "matrix_entropy": 0.9,
    "mp_soft_rank": 0.3,
    "sparsity": 0.0,
}


def reading(step: int, name: str = "fc1", *, moved: float = 0.01, measures: Any = None, **fields: Any) -> LayerReport:
    """A reading of a healthy layer of 80 eigenvalues, but for what is said."""
    record: dict[str, Any] = {
        "name": name,
        "status": "ok",
        "N": 100,
        "M": 80,
        "update_ratio": moved,
        "in_optimizer": True,
        "phase": Phase.BULK_DECAY,
        "alpha_is_meaningful": True,
        "measures": HEALTHY | dict(measures or {}),
        "nulls": {"stable_rank": 40.0},
    }
    return LayerReport(step=step, **record | fields)


def report(step: int, *layers: LayerReport, waiting: Sequence[str] = ()) -> Report:
    return Report(step, layers, Coverage(1, 1), waiting=tuple(waiting))


def told(rules: AlertRule | Iterable[AlertRule], reports: Iterable[Report]) -> list[Alert]:
    """All that a manager of these rules says."""
    manager = AlertManager([rules] if isinstance(rules, AlertRule) else rules)
    return [alert for each in reports for alert in manager.take(each, time=0.0)]


def steps(alerts: Iterable[Alert]) -> list[tuple[int, str]]:
    """When, and whether it has begun or ended."""
    return [(alert.step, alert.state) for alert in alerts]


def series(rule: str, measure: str, values: Iterable[float], **fields: Any) -> list[tuple[int, str]]:
    """What a rule says to a measure that runs through these values, at steps 1, 2, 3 …"""
    readings = [reading(step, measures={measure: value}, **fields) for step, value in enumerate(values, start=1)]
    return steps(told(RULES[rule], (report(layer.step, layer) for layer in readings)))


NAN = math.nan
