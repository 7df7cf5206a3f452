"""Build reports from made-up readings, and run alert rules on them."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from esdmon.alerts import BUILT_IN_RULES, AlertManager, AlertRule, Finding, History
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
    "stable_rank": 20.0,
    "matrix_entropy": 0.9,
    "mp_soft_rank": 0.3,
    "sparsity": 0.0,
    "zero_rows": 0.0,
    "base_ratio": 0.3,
}

_OTHERS = math.sqrt(84)  # norm of all directions but the first, so that ‖W‖_F is 10


def reading(step: int, name: str = "fc1", *, moved: float = 0.01, measures: Any = None, **fields: Any) -> LayerReport:
    """Return a reading of a healthy layer of 80 eigenvalues, with the given changes."""
    changed = HEALTHY | dict(measures or {})
    record: dict[str, Any] = {
        "name": name,
        "status": "ok",
        "N": 100,
        "M": 80,
        "update_ratio": moved,
        "step_ratio": 0.001,
        "in_optimizer": True,
        "phase": Phase.BULK_DECAY,
        "alpha_is_meaningful": True,
        "measures": {"frobenius_norm": math.hypot(changed["spectral_norm"], _OTHERS)} | changed,
        "nulls": {"stable_rank": 40.0},
    }
    return LayerReport(step=step, **record | fields)


def report(step: int, *layers: LayerReport, waiting: Sequence[str] = ()) -> Report:
    return Report(step, layers, Coverage(1, 1), waiting=tuple(waiting))


def alerts_of(rules: AlertRule | Iterable[AlertRule], reports: Iterable[Report]) -> list[Alert]:
    """Return all alerts that these rules raise on the reports."""
    manager = AlertManager([rules] if isinstance(rules, AlertRule) else rules)
    return [alert for each in reports for alert in manager.take(each, time=0.0)]


def steps(alerts: Iterable[Alert]) -> list[tuple[int, str]]:
    """Return the step and state of each alert."""
    return [(alert.step, alert.state) for alert in alerts]


def series(rule: str, measure: str, values: Iterable[float], **fields: Any) -> list[tuple[int, str]]:
    """Return the alerts of a rule on a measure that takes these values at steps 1, 2, 3 …"""
    readings = [reading(step, measures={measure: value}, **fields) for step, value in enumerate(values, start=1)]
    return steps(alerts_of(RULES[rule], (report(layer.step, layer) for layer in readings)))


def over(step: int, **fields: Any) -> LayerReport:
    measures = {"alpha": 1.5, "alpha_high": 1.6, "alpha_stderr": 0.05, "erg_gap": -2.0}
    others: dict[str, Any] = {"phase": Phase.HEAVY_TAILED, "over_regularized": True, "moved": 0.7}
    return reading(step, measures=measures, **(others | fields))


def collapsed(step: int, **fields: Any) -> LayerReport:
    return reading(step, measures={"hard_rank": 40.0}, phase=Phase.RANK_COLLAPSE, alpha_is_meaningful=False, **fields)


WRONG: dict[str, Callable[[int], LayerReport]] = {
    "over_regularized": over,
    "rank_collapse": collapsed,
    "correlation_trap": lambda step, **fields: reading(step, measures={"trap": 2.0}, **fields),
    "adapter_growth": lambda step, **fields: reading(step, measures={"base_ratio": 1.5}, **fields),
    "dead_units": lambda step, **fields: reading(step, measures={"zero_rows": 30.0}, **fields),
    "scale_collapse": lambda step, **fields: reading(step, measures={"frobenius_norm": 0.8}, **fields),
    "entropy_collapse": lambda step, **fields: reading(step, measures={"matrix_entropy": 0.6}, **fields),
    "stable_rank_drop": lambda step, **fields: reading(step, measures={"stable_rank": 5.0}, **fields),
    "update_surge": lambda step, **fields: reading(step, step_ratio=0.01, **fields),
    "layer_reset": lambda step, **fields: reading(step, **({"moved": 1.4} | fields)),
    "norm_decay": lambda step, **fields: reading(step, measures={"frobenius_norm": 9 * 0.97 ** (step - 11)}, **fields),
    "norm_explosion": lambda step, **fields: reading(step, measures={"spectral_norm": 40.0}, **fields),
    "phase_regression": lambda step, **fields: reading(
        step, phase=Phase.RANDOM_LIKE, measures={"mp_soft_rank": 1.0, "stable_rank": 30.0}, **fields
    ),
}
"""For each rule on spectra, a reading that it finds wrong after ten good ones."""


def low(history: History, *, limit: float = 10.0) -> Iterable[Finding]:
    """Find layers whose stable rank is low."""
    for name, readings in history.layers.items():
        if readings[-1].measures["stable_rank"] < limit:
            yield Finding(name, "it is low", {"before": float(len(history.firing.get(name, {})))})


LOW = AlertRule("low", low, checks=2, clear=3, advice="Raise it.")


NAMES = tuple(f"layer.{k}" for k in range(30))


def run(*wrong: Sequence[int], names: Sequence[str] = NAMES) -> list[Report]:
    """Reports at steps 1, 2, 3 …, in each of which the layers of these numbers are low."""
    return [
        report(
            step,
            *(reading(step, name, measures={"stable_rank": 5.0 if k in low else 20.0}) for k, name in enumerate(names)),
        )
        for step, low in enumerate(wrong, start=1)
    ]


def one(pattern: str) -> list[Report]:
    """Reports of one layer: `x` where it is low, `.` where not."""
    return run(*([0] if mark == "x" else [] for mark in pattern), names=["fc1"])
