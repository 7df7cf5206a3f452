"""Readings between the scheduled ones, in a training."""

from collections.abc import Collection, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import esdmon
from esdmon.alerts import BUILT_IN_RULES, AlertRule, Finding, History
from esdmon.records import Alert, Coverage, Report
from esdmon.replay import replay
from esdmon.replay import reports as reports_in
from esdmon.runtime.escalation import Escalation
from esdmon.runtime.step_sampling import SHARE, Sampler, StepSampling
from esdmon.schedule.budget import Budget
from esdmon.schedule.step_sample import StepSample
from esdmon.sinks.memory import MemorySink
from tests.limits import set_limits


class Loop:
    """A training that is watched every twenty steps."""

    def __init__(self, **options: object) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 40))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.sink = MemorySink()
        settings: dict[str, object] = {"budget": None, "mode": "sync", "every": 20, "sinks": [self.sink]}
        self.monitor = esdmon.watch(self.model, self.optimizer, **(settings | options))  # type: ignore[arg-type]

    def train(self, first: int, last: int) -> None:
        for step in range(first, last):
            inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
            loss = functional.mse_loss(self.model(inputs), inputs[:, :40])
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            self.optimizer.step()

    @property
    def extra(self) -> list[int]:
        return [report.step for report in self.sink.reports if report.extra]


def test_a_healthy_training_is_read_as_scheduled() -> None:
    loop = Loop()
    loop.train(0, 400)
    assert loop.extra == []
    assert [report.step for report in loop.sink.reports] == list(range(20, 401, 20))
    assert all(0 < report["0"].step_ratio < 0.1 for report in loop.sink.reports[2:])
    assert all(report["0"].learning_rate == 0.05 for report in loop.sink.reports)


def test_a_raised_learning_rate_is_reported_within_tens_of_steps() -> None:
    loop = Loop()
    loop.train(0, 410)
    loop.optimizer.param_groups[0]["lr"] = 0.5
    loop.train(410, 440)
    first = next(alert for alert in loop.monitor.alerts if alert.severity != "info")
    assert first.rule == "update_surge"
    assert 410 < first.step < 420  # before the next scheduled reading
    assert "its learning rate rose from 0.05 to 0.5" in first.message
    assert loop.extra[0] > 410


@pytest.mark.parametrize("step", [44, 404])
def test_a_weight_that_is_not_finite_any_more_is_reported_before_the_next_scheduled_reading(step: int) -> None:
    """Within two samples, also where only a few were taken before."""
    loop = Loop()
    loop.train(0, step)
    with torch.no_grad():
        loop.model.get_parameter("2.weight")[3, 7] = float("inf")
    loop.train(step, step + 16)
    (alert,) = loop.monitor.alerts
    assert alert.rule == "non_finite"
    assert step < alert.step <= step + 4


def test_a_layer_that_is_initialised_again_is_reported_at_once() -> None:
    loop = Loop()
    loop.train(0, 404)
    nn.init.kaiming_normal_(loop.model.get_parameter("2.weight"))
    loop.train(404, 420)
    (first, *_) = loop.monitor.alerts
    assert (first.rule, first.layer) == ("layer_reset", "2")
    assert 404 < first.step <= 410


def test_the_layers_that_an_extra_reading_leaves_out_were_not_due() -> None:
    """Nothing was postponed where there is no budget."""
    loop = Loop()
    loop.train(0, 410)
    with torch.no_grad():
        loop.model.get_parameter("2.weight").mul_(1.2)
    loop.train(410, 420)
    extra = next(report for report in loop.sink.reports if report.extra)
    assert "1 of 2 read earlier, the oldest at step 400: 1 not due at this extra step" in str(extra)


def test_extra_readings_are_marked_and_replayed(tmp_path: Path) -> None:
    loop = Loop(sinks=f"jsonl:{tmp_path}/esdmon.jsonl")
    loop.train(0, 410)
    loop.optimizer.param_groups[0]["lr"] = 0.5
    loop.train(410, 460)
    loop.monitor.close()
    reports = list(reports_in(tmp_path))
    extra = [report for report in reports if report.extra]
    assert extra
    assert all(layer.extra for report in extra for layer in report.new)
    assert not any(layer.extra for report in reports if not report.extra for layer in report.new)
    assert all(report.step % 20 for report in extra)
    again = [(alert.rule, alert.step) for alert in replay(tmp_path, BUILT_IN_RULES)]
    assert again == [(alert.rule, alert.step) for alert in loop.monitor.alerts]


def test_without_rules_nothing_is_sampled_or_added() -> None:
    loop = Loop(alerts=None)
    loop.train(0, 410)
    loop.optimizer.param_groups[0]["lr"] = 0.5
    loop.train(410, 440)
    assert loop.extra == []


def test_the_watch_between_readings_stays_within_its_share() -> None:
    """A thousandth of the run, on an injected clock, and what may be spent before it is earned."""

    now = [0.0]
    budget = Budget(0.01, clock=lambda: now[0], cpu_clock=lambda: now[0])

    class Slow:
        """Samples that take a hundredth of a second."""

        def begin(self) -> None:
            now[0] += 0.005

        def end(self) -> None:
            now[0] += 0.005

        def take(self) -> dict[str, object]:
            return {}

    source: Sampler = Slow()  # type: ignore[assignment]
    sampling, spent = StepSampling(source, budget), 0.0
    budget.start()
    for step in range(1, 20_000):
        before = now[0]
        sampling.end(step)
        sampling.begin(step, 1, is_next=False)
        spent += now[0] - before
        now[0] += 0.01
    assert 0.5 * SHARE < spent / now[0] < 1.2 * SHARE


class NoSamples:
    """Nothing jumps; the steps of a counter at which samples begin are noted."""

    def __init__(self) -> None:
        self.step = 0
        self.begun: list[int] = []

    def begin(self) -> None:
        self.begun.append(self.step)

    def end(self) -> None:
        pass

    def take(self) -> dict[str, StepSample]:
        return {}


def test_where_the_share_is_used_up_it_is_looked_at_again_a_quarter_of_an_interval_later() -> None:
    """The clock stands still, so that nothing is earned: a look at each step would cost more than what is saved."""
    now = [0.0]
    budget = Budget(0.01, clock=lambda: now[0], cpu_clock=lambda: now[0])

    class Costly(NoSamples):
        def begin(self) -> None:
            super().begin()
            now[0] += 1.0

    source = Costly()
    sampling = StepSampling(source, budget)  # type: ignore[arg-type]
    budget.start()
    for step in range(41):
        source.step = step
        sampling.begin(step, 20, is_next=False)
        sampling.end(step + 1)
    assert source.begun == [0]
    assert [sampling.next_step(step, 20) for step in (40, 44, 45)] == [45, 45, 46]
    now[0] = 1e6
    source.step = 45
    sampling.begin(45, 20, is_next=False)
    assert source.begun == [0, 45]


def no_samples() -> Sampler:
    return NoSamples()  # type: ignore[return-value]


@given(
    gaps=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    findings=st.lists(st.tuples(st.integers(0, 250), st.booleans()), max_size=4),
    count=st.integers(1, 3),
)
@example(gaps=[3, 2], findings=[], count=2)
def test_most_steps_need_no_call(gaps: list[int], findings: list[tuple[int, bool]], count: int) -> None:
    """Called from `next_step` on and at scheduled steps, it samples and reads as if it were called at each step."""
    scheduled = set(accumulate(gaps))

    def run(*, always: bool) -> tuple[list[int], list[tuple[int, tuple[str, ...]]], int]:
        source, read, calls = NoSamples(), [], 0
        escalation = Escalation(StepSampling(source, Budget(None)))  # type: ignore[arg-type]
        for step in range(count, 300, count):
            source.step = step
            is_scheduled = not scheduled.isdisjoint(range(step - count + 1, step + 1))
            if always or is_scheduled or step >= escalation.next_step:
                calls += 1
                read.append((step, escalation.due(step, is_scheduled=is_scheduled)))
            for when, is_found in findings:
                if when == step:
                    alert = Alert("id", "rule", "warning", "pending", "a", ("a",), step, step, "")
                    escalation.report(Report(step, (), Coverage(0, 0), 0.0), [alert] if is_found else [])
            if always or step >= escalation.next_step:
                escalation.sample(step)
        return source.begun, [each for each in read if each[1]], calls

    begun, read, calls = run(always=False)
    assert (begun, read) == run(always=True)[:2]
    if not findings:  # each of them is looked at in the next step, and a layer with one in each
        # The first, two for each sample, each scheduled step, and that at which the one after it is expected.
        assert calls <= 1 + 2 * len(begun) + 2 * len(scheduled)


def test_what_other_ranks_read_is_asked_for_once_some_steps_ahead() -> None:
    """Of each poll, halfway to it; what rank 0 reads alone is not asked for."""

    class Ranks:
        """Two layers, of which rank 0 holds one."""

        step = 0

        def __init__(self) -> None:
            self.asked: list[tuple[int, list[str]]] = []

        @property
        def next_poll(self) -> int:
            return self.step - self.step % 20 + 20

        def is_elsewhere(self, name: str) -> bool:
            return name == "far"

        def ask(self, names: Collection[str]) -> None:
            self.asked.append((self.step, sorted(names)))

    ranks = Ranks()
    escalation, here = Escalation(StepSampling(no_samples(), Budget(None)), ranks), []
    for step in (200, 400):
        escalation.due(step, is_scheduled=True)
    alert = Alert("id", "rule", "warning", "pending", "far", ("far", "near"), 400, 400, "")
    escalation.report(Report(400, (), Coverage(0, 0), 0.0), [alert])
    for step in range(401, 450):
        ranks.step = step
        here += [(step, name) for name in escalation.due(step, is_scheduled=False)]
        escalation.sample(step)
    assert here == [(420, "near"), (440, "near")]
    assert ranks.asked == [(410, ["far"]), (430, ["far"])]


def test_a_finding_is_confirmed_at_the_next_scheduled_steps_where_the_budget_allows_one_matrix_at_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And not after two rounds of all six layers."""

    def late(history: History) -> Iterator[Finding]:
        """A layer is read after step 200. Source: this test."""
        yield from (Finding(name, "late") for name in history.layers if name == "3" and history.report.step > 200)

    set_limits(monkeypatch, advance_seconds=0.0)
    torch.manual_seed(0)
    model = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
    optimizer, sink = torch.optim.Adam(model.parameters()), MemorySink()
    rules = [AlertRule("late", late, counts="readings")]
    with esdmon.watch(model, optimizer, every=10, budget=1e-9, mode="sync", sinks=[sink], alerts=rules) as monitor:
        for step in range(400):
            inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
            loss = sum((functional.mse_loss(layer(inputs), inputs) for layer in model), start=torch.zeros(()))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
    assert max(len(report.new) for report in sink.reports) == 1
    (alert,) = monitor.alerts
    assert alert.step == alert.since + 20
    assert [report.new[0].name for report in sink.reports if alert.since <= report.step <= alert.step] == ["3"] * 3
