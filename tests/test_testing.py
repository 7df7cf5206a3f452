"""The conformance kit, over all that is registered; and that it finds what it is there to find."""

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import esdmon
from esdmon.alerts import AlertRule, Finding, History
from esdmon.plugins import Plugins
from esdmon.records import Alert, Report
from esdmon.sinks import ConsoleSink, JsonlSink, MemorySink, Sink
from esdmon.spectrum import Measure, Spectrum
from esdmon.testing import check_host, check_measure, check_rule, check_sink, spectra
from esdmon_tensorboard import TensorBoardSink


@pytest.mark.parametrize("measure", Plugins().measures.values(), ids=lambda measure: measure.name)
def test_every_measure_passes(measure: Measure) -> None:
    """All that are built in."""
    check_measure(measure)


@pytest.mark.parametrize("rule", Plugins().rules.values(), ids=lambda rule: rule.name)
def test_every_rule_passes(rule: AlertRule) -> None:
    """All that are built in."""
    check_rule(rule)


def _rule(find: Callable[[History], Any], page: str = "Fires always. Source: this test.") -> AlertRule:
    find.__doc__ = page
    return AlertRule("own", find)


COUNT = count()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (_rule(lambda _: 1 / 0), "the rule own raises on readings: ZeroDivisionError"),
        (_rule(lambda _: ["bad"]), "the rule own gives 'bad' on readings"),
        (_rule(lambda _: [Finding("fc9", "bad")]), "which is not a finding in one of its layers"),
        (_rule(lambda _: [Finding("", str(next(COUNT)))]), "the second time"),
        (_rule(lambda history: [history.layers["fc"][0].measures["x"]]), "raises on readings: KeyError"),
        (_rule(lambda _: [], page=""), "the rule own has no page"),
    ],
    ids=["raises", "rubbish", "elsewhere", "random", "fragile", "silent"],
)
def test_a_rule_that_misbehaves_fails_the_check(rule: AlertRule, message: str) -> None:
    """What it gave, and on what."""
    with pytest.raises(AssertionError, match=message):
        check_rule(rule)


@pytest.mark.parametrize("kind", ["memory", "jsonl", "console", "tensorboard", "the user's writer"])
def test_every_sink_passes(kind: str, tmp_path: Path) -> None:
    """Those that need no service; wandb's is run in its own tests."""
    writer = SummaryWriter(str(tmp_path / "writer"))
    makers: dict[str, Callable[[], Sink]] = {
        "memory": MemorySink,
        "jsonl": lambda: JsonlSink(tmp_path / "a.jsonl"),
        "console": ConsoleSink,
        "tensorboard": lambda: TensorBoardSink.open(str(tmp_path / "run")),
        "the user's writer": lambda: TensorBoardSink(writer),
    }
    check_sink(makers[kind])
    writer.close()


def test_a_loop_with_a_monitor_passes() -> None:
    """The plainest host."""

    def train(watched: bool) -> tuple[list[float], nn.Module]:  # noqa: FBT001 -- as the kit calls it
        torch.manual_seed(0)
        model = nn.Linear(64, 64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = esdmon.watch(model, optimizer, every=1, sinks=None) if watched else None
        losses = []
        for _ in range(5):
            loss = model(torch.randn(4, 64)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if monitor is not None:
            monitor.close()
        return losses, model

    check_host(train)


def raises(_spectrum: Spectrum) -> float:
    raise ZeroDivisionError


def spoils(spectrum: Spectrum) -> float:
    spectrum.eigenvalues.flags.writeable = True
    spectrum.eigenvalues[..., 0] = 0.5
    return 0.0


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (raises, r"the value of mine raises on noise: ZeroDivisionError\(\); undefined is NaN"),
        (lambda _spectrum: None, "the value of mine on noise is None, which is not a number"),
        (lambda _spectrum: float(np.random.default_rng().random()), "and .* the second time"),
        (spoils, "mine changes the eigenvalues of noise|assignment destination|read-only|WRITEABLE"),
    ],
    ids=["raises", "no-number", "random", "spoils"],
)
def test_a_measure_that_misbehaves_fails_the_check(compute: object, message: str) -> None:
    """With its name, and on what."""
    with pytest.raises((AssertionError, ValueError), match=message):
        check_measure(Measure("mine", compute))  # type: ignore[arg-type]


class Fragile:
    """A sink that knows only pleasant readings."""

    def write(self, report: Report) -> None:
        assert all(layer.status == "ok" for layer in report), "a layer is not ok"

    def alert(self, alert: Alert) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_a_sink_that_misbehaves_fails_the_check() -> None:
    """With the call."""
    with pytest.raises(AssertionError, match=r"Fragile raises in write, at step 10: .*a layer is not ok"):
        check_sink(Fragile)
    with pytest.raises(AssertionError, match="has no write"):
        check_sink(object)  # type: ignore[arg-type]


def test_a_host_that_steers_fails_the_check() -> None:
    """A watched training that draws one more random number."""

    def train(watched: bool) -> tuple[list[float], nn.Module]:  # noqa: FBT001 -- as the kit calls it
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        if watched:
            torch.rand(1)
        return [float(torch.rand(1)), math.nan], model

    with pytest.raises(AssertionError, match="the losses differ with a monitor, first at 0"):
        check_host(train)


def test_the_spectra_are_what_they_say() -> None:
    """So that who passes has passed something."""
    assert spectra()["noise"].bulk is not None
    assert spectra()["half of them zero"].nonzero.size == 64
    assert spectra()["pooled slices"].slices == 9
