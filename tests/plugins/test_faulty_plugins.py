"""Plugins with a fault: each is named once and isolated, and what is built in goes on."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pluggy
import pytest

import esdmon
from esdmon.isolation import Faults
from esdmon.plugins import Plugins, hookimpl
from esdmon.records import Alert
from esdmon.spectrum import Measure, Spectrum, measures
from tests.plugins.given import AddsRule, Listener, small_model, warnings

ALERT = Alert("a", "always", "warning", "firing", "0", ("0",), step=1, since=1, message="0: found by a plugin.")


class LateListener(Listener):
    """The same under another name."""


class RaisesOnAlert:
    """A plugin that fails at every alert."""

    @hookimpl
    def esdmon_on_alert(self, alert: Alert) -> None:
        raise RuntimeError(alert.id)


class FailsToExtract:
    """A plugin that fails at every module."""

    @hookimpl
    def esdmon_extract_matrices(self, name: str) -> None:
        raise RuntimeError(name)


class ExtractsNumber:
    """A plugin whose matrices are a number."""

    @hookimpl
    def esdmon_extract_matrices(self) -> Any:
        return 5


class ExtractsNames:
    """A plugin whose matrices are names of matrices."""

    @hookimpl
    def esdmon_extract_matrices(self, name: str) -> Any:
        return [name]


def test_a_plugin_that_fails_on_an_alert_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it is called before or after them."""
    early, late = Listener(), LateListener()
    Plugins([early, RaisesOnAlert(), late]).on_alert(ALERT)
    assert (early.alerts, late.alerts) == ([ALERT], [ALERT])
    (warning,) = warnings(caplog)
    assert warning.startswith("hook esdmon_on_alert (plugin 'RaisesOnAlert') failed at step 1: RuntimeError: a.")


class RecoversAtStep:
    """A plugin that fails on alerts before a step, and keeps the steps at which it is called."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.called: list[int] = []

    @hookimpl
    def esdmon_on_alert(self, alert: Alert) -> None:
        self.called.append(alert.step)
        if alert.step < self.step:
            raise RuntimeError(alert.id)


def test_a_hook_that_keeps_failing_is_paused_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """By the circuit breaker of the monitor: three failures, ten due steps of pause, and then as before."""
    plugin, other, faults = RecoversAtStep(5), Listener(), Faults()
    plugins = Plugins([plugin, other])
    plugins.isolate_with(faults)
    for step in range(1, 17):
        faults.advance()
        plugins.on_alert(replace(ALERT, step=step))
    assert plugin.called == [1, 2, 3, 13, 14, 15, 16]
    assert len(other.alerts) == 16
    (fault,) = faults
    assert (fault.who, fault.count, fault.in_a_row, fault.disabled) == (
        "hook esdmon_on_alert (plugin 'RecoversAtStep')",
        3,
        0,
        False,
    )
    assert [line.partition(") ")[2][:12] for line in warnings(caplog)] == [
        "failed at st",
        "has failed 3",
        "works again ",
    ]


def test_a_schedule_that_fails_is_not_paused() -> None:
    """A pause is counted in due steps, and without the schedule there may be none."""

    class Late:
        @esdmon.hookimpl
        def esdmon_schedule(self, step: int) -> bool:
            if step <= 5:
                raise RuntimeError("not ready")
            return step % 10 == 0

    with esdmon.watch(small_model(), every=10**6, budget=None, sinks=[], plugins=[Late()]) as monitor:
        due = [step for step in range(1, 31) if monitor.step()]
    assert due == [10, 20, 30]
    assert [(fault.count, fault.in_a_row, fault.disabled) for fault in monitor.errors] == [(5, 0, False)]


def test_a_failing_hook_is_among_the_errors_of_the_monitor() -> None:
    """As a sink or a measure that fails."""
    with esdmon.watch(small_model(), every=1, budget=None, sinks=[], plugins=[AddsRule(), RaisesOnAlert()]) as monitor:
        monitor.step()
    assert [(fault.who, fault.step) for fault in monitor.errors] == [
        ("hook esdmon_on_alert (plugin 'RaisesOnAlert')", 1)
    ]


@pytest.mark.parametrize(
    "plugin", [FailsToExtract(), ExtractsNumber(), ExtractsNames()], ids=lambda plugin: type(plugin).__name__
)
def test_a_bad_extractor_is_named_once_and_what_is_built_in_goes_on(
    plugin: object, caplog: pytest.LogCaptureFixture
) -> None:
    """It is called for each module, but one warning is enough for all of them."""
    report = esdmon.analyze(small_model(), plugins=[plugin])
    assert [layer.name for layer in report] == ["0", "2"]
    (warning,) = warnings(caplog)
    assert type(plugin).__name__ in warning


def test_a_measure_of_a_plugin_that_fails_is_undefined_and_nothing_else_is_lost() -> None:
    """The layer stays ok, its other measures are there, and the monitor's errors name the measure."""

    class FailingMeasure:
        @hookimpl
        def esdmon_register_measures(self) -> Iterable[Measure]:
            return [Measure("broken", self.compute)]

        def compute(self, _spectrum: Spectrum) -> float:
            raise ZeroDivisionError

    with esdmon.watch(small_model(), every=1, budget=None, sinks=[], plugins=[FailingMeasure()]) as monitor:
        monitor.step()
    assert monitor.report is not None
    layer = monitor.report["0"]
    assert layer.status == "ok"
    assert layer.to_record()["broken"] is None
    assert layer.measures["stable_rank"] > 1
    assert [fault.who for fault in monitor.errors] == [
        "measure broken (plugin 'FailingMeasure', esdmon_register_measures)"
    ]


class NoHooks:
    """A plugin whose author forgot the mark."""

    def esdmon_register_measures(self) -> Iterable[Measure]:
        return []


class First:
    """A plugin that would like to come before all others."""

    @pluggy.HookimplMarker("esdmon")(trylast=True)
    def esdmon_register_measures(self) -> Iterable[Measure]:
        return [Measure("alpha", lambda _spectrum: 0.0)]


class Wrapping:
    """A plugin that would like to be called around the others."""

    @pluggy.HookimplMarker("esdmon")(wrapper=True)
    def esdmon_register_measures(self) -> Any:
        return (yield)


@pytest.mark.parametrize(
    ("plugin", "warning"),
    [
        (NoHooks(), "plugin 'NoHooks' has no hooks and is not used: mark its functions with @esdmon.hookimpl"),
        (First(), "plugin 'First' failed in esdmon_register_measures: the name 'alpha' is taken already"),
        (Wrapping(), "plugin 'Wrapping' failed in esdmon_register_measures: it is a wrapper"),
    ],
    ids=["no hooks", "first", "wrapper"],
)
def test_mistakes_of_authors_are_logged(plugin: object, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line each, and what is built in stands."""
    plugins = Plugins([plugin])
    assert plugins.measures["alpha"] in measures.BUILT_IN_MEASURES
    (message,) = warnings(caplog)
    assert message.startswith(warning)
