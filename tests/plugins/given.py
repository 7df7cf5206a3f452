"""A model, a plugin with settings, and what was logged: for the tests of plugins."""

import logging
from collections.abc import Callable, Iterable

import pytest
from torch import nn

from esdmon import alerts
from esdmon.plugins import hookimpl
from esdmon.records import Alert
from esdmon.spectrum import Measure, Spectrum
from tests.rules import ALWAYS

BUILT_IN_SCHEMES = {"console", "csv", "jsonl", "prometheus", "webhook"}
SCHEMES = BUILT_IN_SCHEMES | {"clearml", "comet", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"}
"""Those of the sinks, with our integrations."""

Install = Callable[[str, str], None]
"""`install(name, code)` makes a module that is the entry point of that name."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings that esdmon has logged, without their prefix."""
    return [
        record.getMessage().removeprefix("esdmon: ") for record in caplog.records if record.levelno == logging.WARNING
    ]


def small_model() -> nn.Sequential:
    """Two matrices that are just large enough to be measured."""
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12))


class AddsMeasure:
    """A plugin with settings, which can be given several times."""

    def __init__(self, name: str, value: float) -> None:
        self.name = name
        self.value = value

    @hookimpl
    def esdmon_register_measures(self) -> Iterable[Measure]:
        return [Measure(self.name, self.compute)]

    def compute(self, _spectrum: Spectrum) -> float:
        return self.value


class AddsRule:
    """A plugin whose rule finds the same at every reading."""

    @hookimpl
    def esdmon_register_alert_rules(self) -> Iterable[alerts.AlertRule]:
        return [ALWAYS]


class Listener:
    """A plugin that keeps the alerts that it gets."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []

    @hookimpl
    def esdmon_on_alert(self, alert: Alert) -> None:
        self.alerts.append(alert)
