"""Wrong calls of public functions: one sentence with the remedy, and not Python's own error."""

import inspect
import pickle
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import esdmon
from esdmon import testing
from esdmon.alerts import AlertRule, Finding
from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError
from esdmon.sinks import ConsoleSink, CsvSink, JsonlSink, MemorySink, PrometheusSink, ScalarLoggerSink, WebhookSink

API = Path(__file__).parents[1] / "docs" / "api.md"
NOT_CALLED = "What they return|Options and their defaults|Trainers|Errors"  # Trainers: tests/integrations
MADE_BY_ESDMON = {"Spectrum", "Phase", "PhaseReading", "PowerLawFit", "Bulk", "History", "Replayed"}
WITHOUT_OPTIONS = {"at", "union"}  # which take any number of steps and schedules
METHODS = [
    esdmon.Spectrum.from_eigenvalues,
    esdmon.Run.readings,
    esdmon.Run.spectrum,
    esdmon.Report.plot,
    esdmon.LayerReport.plot,
    esdmon.Monitor.flush,
    esdmon.Monitor.close,
    esdmon.Monitor.load_state_dict,
]
SINKS = [ConsoleSink, CsvSink, JsonlSink, MemorySink, PrometheusSink, ScalarLoggerSink, WebhookSink]


def documented() -> list[Any]:
    """What the page of the API has that users call: functions, and classes that they make objects of."""
    found: list[Any] = []
    for section in API.read_text(encoding="utf-8").split("\n## ")[1:]:
        if re.match(NOT_CALLED, section):
            continue
        for name in re.findall(r"^::: (\S+)$", section, re.MULTILINE):
            module, _, attribute = name.rpartition(".")
            value = getattr(import_module(module), attribute, None)
            if callable(value) and attribute not in MADE_BY_ESDMON | WITHOUT_OPTIONS:
                found.append(value)
    return found


CALLED = [*documented(), *(getattr(testing, name) for name in testing.__all__ if name.startswith("check_"))]


def test_the_page_of_the_api_has_what_is_called() -> None:
    """The cases below are not empty."""
    assert {esdmon.watch, esdmon.analyze, esdmon.load, AlertRule, Finding} <= set(CALLED)


@pytest.mark.parametrize("target", [*CALLED, *METHODS, *SINKS], ids=lambda each: each.__qualname__)
def test_a_wrong_call_has_a_remedy(target: Callable[..., object]) -> None:
    """A name that is unknown, and more arguments than are taken by position."""
    is_method = next(iter(inspect.signature(target).parameters), "") == "self"
    with pytest.raises(InputError, match=r"^unknown option colour=\."):
        target(colour="red")
    with pytest.raises(InputError, match=r"\(\) takes .* by position; arguments given: 40\. "):
        target(*[None] * (40 + is_method))


@pytest.mark.parametrize(
    ("target", "given", "named", "message"),
    [
        pytest.param(esdmon.load, (), {"n": 3}, "unknown option n=. Did you mean 'number'?", id="abbreviation"),
        pytest.param(
            esdmon.load,
            ("a",),
            {"run_number": 3},
            "unknown option run_number=. Did you mean 'run' or 'number'?",
            id="among-its-words",
        ),
        pytest.param(
            esdmon.load,
            (),
            {"path": "a"},
            "unknown option path=. run= takes the JSONL of a run, or its folder.",
            id="another-word",
        ),
        pytest.param(
            esdmon.load,
            ("a", 3),
            {},
            "load() takes only run by position; arguments given: 2. Give the others by name: number=.",
            id="by-position",
        ),
        pytest.param(esdmon.load, (), {}, "load() needs run=, which is missing from the call.", id="missing"),
        pytest.param(
            esdmon.analyze,
            ({},),
            {"model": {}},
            "analyze() has model= twice: by position, and by name. Leave out one of them.",
            id="twice",
        ),
        pytest.param(
            esdmon.watch, (), {"modl": {}}, "unknown option modl=. Did you mean 'model'?", id="the-first-argument"
        ),
        pytest.param(
            AlertRule, ("a", list), {"chekcs": 3}, "unknown option chekcs=. Did you mean 'checks'?", id="a-dataclass"
        ),
        pytest.param(
            esdmon.Spectrum.from_eigenvalues,
            ([1.0],),
            {"shap": (1, 1)},
            "unknown option shap=. Did you mean 'shape'?",
            id="a-class-method",
        ),
        pytest.param(
            MemorySink,
            ("a",),
            {},
            "MemorySink() takes nothing by position; arguments given: 1. Leave out the others.",
            id="no-options",
        ),
    ],
)
def test_what_a_wrong_call_says(
    target: Callable[..., object], given: tuple[object, ...], named: dict[str, object], message: str
) -> None:
    """The argument by its name, and the one that is meant."""
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        target(*given, **named)


def test_errors_of_the_function_itself_are_its_own() -> None:
    """A TypeError that a call has caused inside, where it was accepted, is not about the call."""

    @explain_wrong_calls
    def doubled(number: float) -> float:
        return number * 2 + abs(number)

    assert doubled(2) == 6
    with pytest.raises(TypeError, match="bad operand"):
        doubled("a")  # type: ignore[arg-type]


def test_signatures_and_objects_are_as_before() -> None:
    """`help()`, editors and command lines read the signature; rules are copied, compared and pickled."""
    assert list(inspect.signature(esdmon.load).parameters) == ["run", "number"]
    assert list(inspect.signature(AlertRule).parameters)[:3] == ["name", "find", "severity"]
    assert list(inspect.signature(esdmon.watch).parameters)[:3] == ["model", "optimizer", "every"]
    rule = AlertRule("a", list, checks=2)
    assert pickle.loads(pickle.dumps(rule)) == rule  # noqa: S301 -- its own
