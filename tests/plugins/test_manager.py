"""Plugins: all comes in by the hooks."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon import alerts, sinks
from esdmon.errors import InputError
from esdmon.plugins import Plugins, hookimpl
from esdmon.spectrum import measures
from esdmon.weights import Matrix, stacks
from tests.plugins.given import BUILT_IN_SCHEMES, SCHEMES, AddsMeasure, AddsRule, Listener, small_model, warnings


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param(
            "jsnl:a",
            r"unknown sink scheme 'jsnl' in 'jsnl:a'\. .*console, csv, jsonl.*Did you mean 'jsonl' or 'swanlab'\?",
            id="close",
        ),
        pytest.param(
            "mqtt",
            rf"unknown sink scheme 'mqtt' in 'mqtt'\. Available: {', '.join(sorted(SCHEMES))}\.$",
            id="far",
        ),
        pytest.param(
            "console, jsonl:a.jsonl", r"\. Several sinks are a list: \['console', 'jsonl:a.jsonl'\]\.$", id="several"
        ),
        pytest.param("a/b.jsonl", r"\. Did you mean 'jsonl:a/b.jsonl'\?$", id="path-of-a-file"),
        pytest.param(
            "runs/a", r"\. Did you mean 'tensorboard:runs/a' or 'jsonl:runs/a/esdmon.jsonl'\?$", id="path-of-a-folder"
        ),
        pytest.param(
            "https://hooks.example/secret",
            r"'https:…'\. Available.*\. An address that alerts are posted to is given as 'webhook:https://…'\.$",
            id="address",
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


@pytest.mark.parametrize("extra", ["name", 5], ids=["text", "number"])
def test_plugins_are_a_list(extra: Any) -> None:
    """A ValueError that says so."""
    with pytest.raises(InputError, match="plugins= must be a list of modules or objects with hooks; got"):
        Plugins(extra)
    for item in (extra, None):
        with pytest.raises(InputError, match=f"must hold modules or objects with hooks; got {item!r}. An installed"):
            Plugins([item])
