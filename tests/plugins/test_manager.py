"""Plugins: all comes in by the hooks, and one that is broken is named and left out."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pluggy
import pytest
import torch
from torch import nn

import esdmon
from esdmon import alerts, sinks
from esdmon.errors import InputError
from esdmon.isolation import Faults
from esdmon.plugins import Plugins, hookimpl
from esdmon.records import Alert
from esdmon.spectrum import Measure, Spectrum, measures
from esdmon.weights import Matrix, stacks
from tests.plugins.given import BUILT_IN_SCHEMES, SCHEMES, AddsMeasure, small_model, warnings
from tests.rules import ALWAYS

ALERT = Alert("a", "always", "warning", "firing", "0", ("0",), step=1, since=1, message="0: found by a plugin.")


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


def test_all_that_is_built_in_comes_by_the_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any entry point there are the built-in measures, rules, sinks and extractor."""
    monkeypatch.setenv("ESDMON_DISABLE_PLUGINS", "*")
    plugins = Plugins()
    assert list(plugins.measures.values()) == list(measures.BUILT_IN_MEASURES)
    assert list(plugins.rules.values()) == list(alerts.BUILT_IN_RULES)
    assert plugins.schemes == BUILT_IN_SCHEMES
    assert [matrix.name for matrix in plugins.extract("fc", nn.Linear(2, 2)) or ()] == ["fc"]
    assert plugins.extract("act", nn.ReLU()) is None


def test_tensorboard_comes_by_an_entry_point() -> None:
    """Our own integration uses the door of any third party."""
    assert Plugins().schemes == SCHEMES


def test_a_plugin_adds_a_measure() -> None:
    """It is taken of each layer, beside what is built in."""
    report = esdmon.analyze(small_model(), plugins=[AddsMeasure("answer", 42.0)])
    assert [layer.measures["answer"] for layer in report] == [42.0, 42.0]
    assert all("stable_rank" in layer.measures for layer in report)


def test_two_plugins_of_one_class_are_two_plugins(caplog: pytest.LogCaptureFixture) -> None:
    """Instances with different settings do not push each other out."""
    plugins = Plugins([AddsMeasure("first", 1.0), AddsMeasure("second", 2.0)])
    assert {"first", "second"} <= plugins.measures.keys()
    assert warnings(caplog) == []


def test_a_plugin_adds_a_sink() -> None:
    """It is opened with all that stands behind the first colon."""
    opened: dict[str, sinks.MemorySink] = {}

    class AddsSink:
        @hookimpl
        def esdmon_register_sinks(self) -> Mapping[str, Callable[[str], sinks.Sink]]:
            return {"list": lambda target: opened.setdefault(target, sinks.MemorySink())}

    with esdmon.watch(small_model(), every=1, budget=None, sinks=["list:a:b"], plugins=[AddsSink()]) as monitor:
        monitor.step()
    assert list(opened) == ["a:b"]
    assert opened["a:b"].reports == [monitor.report]


def test_a_plugin_adds_a_rule() -> None:
    """Its alert goes to the sinks once, though it holds at every reading."""
    sink = sinks.MemorySink()
    with esdmon.watch(small_model(), every=1, budget=None, sinks=[sink], plugins=[AddsRule()]) as monitor:
        monitor.step()
        monitor.step()
    assert [(alert.id, alert.step) for alert in sink.alerts] == [("always", 1)]


def test_a_plugin_is_called_with_alerts() -> None:
    """Of the same ones as the sinks."""
    listener = Listener()
    with esdmon.watch(small_model(), every=1, budget=None, sinks=[], plugins=[AddsRule(), listener]) as monitor:
        monitor.step()
    assert [alert.id for alert in listener.alerts] == ["always"]
    assert tuple(listener.alerts) == monitor.alerts


def test_a_plugin_adds_a_kind_of_layer() -> None:
    """A module that is unknown to esdmon is read as the plugin says."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.rand(16, 12))

    class KnowsMixer:
        @hookimpl
        def esdmon_extract_matrices(self, name: str, module: nn.Module) -> Sequence[Matrix] | None:
            if isinstance(module, Mixer):
                return [Matrix(f"{name}.table", partial(getattr, module, "table"), stacks.linear)]
            return None

    report = esdmon.analyze(nn.Sequential(Mixer(), nn.Linear(12, 12)), plugins=[KnowsMixer()])
    assert [(layer.name, layer.status, layer.N, layer.M) for layer in report] == [
        ("0.table", "ok", 16, 12),
        ("1", "ok", 12, 12),
    ]


def test_a_plugin_is_asked_before_what_is_built_in() -> None:
    """An empty answer leaves a module out, though it is a linear layer."""

    class SkipsTheFirst:
        @hookimpl
        def esdmon_extract_matrices(self, name: str) -> Sequence[Matrix] | None:
            return [] if name == "0" else None

    report = esdmon.analyze(small_model(), plugins=[SkipsTheFirst()])
    assert [layer.name for layer in report] == ["2"]


def test_two_monitors_with_different_plugins_share_nothing() -> None:
    """There is no global registry."""
    with_plugin = Plugins([AddsMeasure("mine", 1.0)])
    assert "mine" in with_plugin.measures
    assert "mine" not in Plugins().measures


@pytest.mark.parametrize("name", ["name", "phase", "step", "kind", "schema", "hill_alpha_null"])
def test_a_measure_may_not_take_the_name_of_a_field(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It would overwrite that field of every record; it is refused as a taken name is."""
    assert name not in Plugins([AddsMeasure(name, 0.0)]).measures
    (warning,) = warnings(caplog)
    assert repr(name) in warning


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(
            "jsnl:a",
            r"Unknown sink scheme 'jsnl' in 'jsnl:a'\. .*console, csv, jsonl.*Did you mean 'jsonl' or 'swanlab'\?",
            id="close",
        ),
        pytest.param(
            "mqtt",
            rf"Unknown sink scheme 'mqtt' in 'mqtt'\. Available: {', '.join(sorted(SCHEMES))}\.$",
            id="far",
        ),
        pytest.param("console:a", "console takes no target, got 'console:a'", id="needless-target"),
        pytest.param("jsonl", "jsonl needs a path: 'jsonl:", id="missing-path"),
        pytest.param("tensorboard:", "tensorboard needs a folder, such as 'tensorboard:", id="missing-folder"),
    ],
)
def test_a_sink_that_cannot_be_opened_says_why(spec: str, message: str) -> None:
    """What was got, what there is, and the nearest of it."""
    with pytest.raises(InputError, match=message):
        Plugins().open_sink(spec)


@pytest.mark.parametrize(
    ("opened", "message"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda _: None, "a sink has write, alert, flush and close; None has no write"),
        (lambda _: sinks.MemorySink, "a sink has write, alert, flush and close; MemorySink is a class"),
    ],
    ids=["raises", "none", "class"],
)
def test_a_sink_that_a_plugin_cannot_open_is_named(opened: Callable[[str], Any], message: str) -> None:
    """With the plugin and its hook, before training."""

    class AddsSink:
        @hookimpl
        def esdmon_register_sinks(self) -> Mapping[str, Callable[[str], Any]]:
            return {"bad": opened}

    who = "the sink bad:x (plugin 'AddsSink', esdmon_register_sinks) cannot be opened: "
    with pytest.raises(InputError, match=f"^{re.escape(who + message)}$"):
        esdmon.watch(small_model(), every=1, sinks=["bad:x"], plugins=[AddsSink()])


@pytest.mark.parametrize(
    "spec", [5, None, Path("runs/a.jsonl"), sinks.MemorySink], ids=["int", "None", "path", "class"]
)
def test_what_is_no_sink_is_refused(spec: Any) -> None:
    """Also a path without a scheme, and a class that somebody forgot to call."""
    with pytest.raises(InputError, match="a sink is 'scheme:target' or has write, alert, flush and close"):
        Plugins().open_sink(spec)


def test_a_sink_object_is_taken_as_it_is() -> None:
    """No wrapper stands between the user and what they have made."""
    sink = sinks.MemorySink()
    assert Plugins().open_sink(sink) is sink


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


@pytest.mark.parametrize("extra", ["name", 5], ids=["text", "number"])
def test_plugins_are_a_list(extra: Any) -> None:
    """A ValueError that says so."""
    with pytest.raises(InputError, match="plugins= must be a list of modules or objects with hooks; got"):
        Plugins(extra)
    for item in (extra, None):
        with pytest.raises(InputError, match=f"must hold modules or objects with hooks; got {item!r}. An installed"):
            Plugins([item])
