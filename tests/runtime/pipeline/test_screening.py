"""Norms of matrices whose readings come seldom: what a watched training reports of them, and for which cost."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import esdmon
from esdmon.records import Screened
from esdmon.replay import reports
from esdmon.runtime.pipeline.planning import Planning
from esdmon.runtime.pipeline.screening import SHARE
from esdmon.runtime.reading.reader import Reader
from esdmon.schedule.priority import RARE
from esdmon.sinks import MemorySink
from tests.clocks import set_clock
from tests.limits import set_limits
from tests.runtime.workers.training import slow_measure, waiting_measure

LAYERS = 8
EVERY = 2
STEP = 0.5  # seconds, by a clock that nothing else moves
CHEAP = 1.5e-3  # seconds of a screening: less than a tenth of those of a reading


class Training:
    """Eight layers, of which the budget allows one reading at each due step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, watched: bool = True, screens: bool = True) -> None:
        set_limits(monkeypatch, advance_seconds=0.0)
        self.clock = set_clock(monkeypatch)
        torch.manual_seed(0)
        self.model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(LAYERS)))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3)
        self.sink = MemorySink()
        self.losses: list[float] = []
        self.sigma: dict[tuple[int, str], float] = {}
        if not screens:
            monkeypatch.setattr(Reader, "screen", lambda *_: None)
        self.monitor: esdmon.Monitor | None = None
        if watched:
            self.watch()

    def watch(self, **options: Any) -> None:
        given: dict[str, Any] = {"every": EVERY, "mode": "sync", "plugins": [slow_measure(self.clock)()]} | options
        self.monitor = esdmon.watch(self.model, sinks=[self.sink, *given.pop("sinks", ())], **given)

    def train(self, steps: int) -> "Training":
        for _ in range(steps):
            loss = (self.model(torch.randn(16, 64)) - 1).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())
            self.clock.passes(STEP)
            self.step()
        return self

    def step(self) -> None:
        if self.monitor is not None and self.monitor.step():
            for name, module in self.model.named_children():
                sigma = torch.linalg.matrix_norm(module.get_parameter("weight").detach().double(), ord=2)
                self.sigma[self.monitor.steps, name] = float(sigma)

    @property
    def screened(self) -> list[Screened]:
        return [each for report in self.sink.reports for each in report.screened if each.is_new]


def screening_takes(seconds: float, monkeypatch: pytest.MonkeyPatch, run: Training) -> None:
    """Have each screening take so long, by the clock of a run."""
    screen = Reader.screen

    def slow(reader: Reader, name: str, step: int) -> float | None:
        run.clock.passes(seconds)
        return screen(reader, name, step)

    monkeypatch.setattr(Reader, "screen", slow)


def test_all_matrices_have_norms_of_the_last_due_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sweep takes eight due steps: those of a matrix that was not read for three are screened."""
    run = Training(monkeypatch).train(30 * EVERY)
    for report in run.sink.reports[3:]:
        known = {layer.name: layer.step for layer in report} | {each.name: each.step for each in report.screened}
        assert len(known) == LAYERS
        assert min(known.values()) >= report.step - RARE * EVERY
        assert len(report.new) == 1
        assert report.summary["layers_screened"] == sum(each.is_new for each in report.screened)
        for each in report.screened:
            assert each.step == report.step
            assert each.spectral_norm <= run.sigma[each.step, each.name] * (1 + 1e-6)
            assert each.N == 64
    late = [each for each in run.screened if each.step > 20 * EVERY]
    close = [each for each in late if "lambda_max" in each.measures]
    assert len(close) >= len(late) // 2
    assert all(each.spectral_norm == pytest.approx(run.sigma[each.step, each.name], rel=5e-3) for each in close)


def test_it_takes_a_part_of_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit waits, and the matrix that was not known for longest is first."""
    run = Training(monkeypatch, watched=False)
    screening_takes(CHEAP, monkeypatch, run)
    run.watch(budget=0.01)
    run.train(60 * EVERY)
    seconds = 60 * EVERY * STEP
    assert 0.8 < CHEAP * len(run.screened) / (SHARE * 0.01 * seconds) < 1.1
    for report in run.sink.reports[2 * LAYERS :]:
        known = {layer.name: layer.step for layer in report}
        known |= {each.name: each.step for each in report.screened}
        assert min(known.values()) >= report.step - 2 * RARE * EVERY
    assert run.monitor is not None
    assert run.monitor.overhead == pytest.approx((0.02 + 0.25 * 0.01) / (EVERY * STEP), rel=0.2)


def test_the_part_is_that_of_the_time_since_a_run_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    """From an earlier state in the same process: what was spent before is not spent once more."""
    run = Training(monkeypatch, watched=False)
    screening_takes(CHEAP, monkeypatch, run)
    run.watch(budget=0.01)
    run.train(60 * EVERY)
    before = len(run.screened)
    assert run.monitor is not None
    run.monitor.load_state_dict(run.monitor.state_dict())
    run.train(20 * EVERY)
    assert 0 < CHEAP * (len(run.screened) - before) < 1.1 * SHARE * 0.01 * 20 * EVERY * STEP


def test_what_costs_too_much_is_not_screened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a reading at most."""
    run = Training(monkeypatch, watched=False)
    screening_takes(5e-3, monkeypatch, run)
    run.watch(budget=0.1)
    run.train(30 * EVERY)
    assert {sum(each.name == str(name) for each in run.screened) for name in range(LAYERS)} <= {0, 1}


@pytest.mark.parametrize("options", [{"budget": None}, {"budget": 1.0}], ids=str)
def test_nothing_is_screened_where_all_is_read(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training(monkeypatch, watched=False)
    run.watch(**options)
    run.train(10 * EVERY)
    assert [each for each in run.screened if each.step > EVERY] == []  # at the first there is no credit yet
    assert len(run.sink.reports) == 10
    assert "layers_screened" not in run.sink.reports[-1].summary


def test_a_weight_that_stands_still_is_not_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training(monkeypatch)
    run.model[3].requires_grad_(requires_grad=False)
    run.train(30 * EVERY)
    assert "3" not in {each.name for each in run.screened if each.step > 2 * LAYERS * EVERY}


def test_a_jump_of_the_largest_eigenvalue_brings_a_reading_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a matrix in which the sample of elements sees nothing: the drift is the same with and without."""
    ages = []
    for screens in (True, False):
        run = Training(monkeypatch, screens=screens)
        monkeypatch.setattr(Reader, "drifts", lambda _reader, names: dict.fromkeys(names, 2e-3))
        run.train(20 * EVERY)
        last = {layer.name: layer.step for layer in run.sink.reports[-1]}
        name = sorted(last, key=last.__getitem__)[RARE + 2]  # that has waited for some due steps
        with torch.no_grad():
            run.model.get_submodule(name).get_parameter("weight")[0].add_(3.0)
        before = len(run.sink.reports)
        run.train(LAYERS * EVERY)
        found = [
            index
            for index, report in enumerate(run.sink.reports[before:])
            for layer in report.new
            if layer.name == name
        ]
        ages.append(found[0])
        monkeypatch.undo()
    assert ages[0] < ages[1]


@pytest.mark.parametrize("mode", ["sync", "thread"])
def test_training_is_the_same_to_the_last_bit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Training(monkeypatch, watched=False).train(20 * EVERY)
    random = torch.get_rng_state()
    run = Training(monkeypatch, watched=False)
    run.watch(mode=mode, workers=0)
    run.train(20 * EVERY)
    assert torch.equal(torch.get_rng_state(), random)
    assert run.monitor is not None
    run.monitor.close()
    assert run.screened
    assert run.losses == plain.losses
    assert all(map(torch.equal, run.model.parameters(), plain.model.parameters()))


def test_a_file_has_what_was_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line for each, of 220 bytes at most; and readings, phases and alerts are those of the layers alone."""
    run = Training(monkeypatch, watched=False)
    path = tmp_path / "run.jsonl"
    run.watch(sinks=[f"jsonl:{path}"])
    run.train(20 * EVERY)
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["kind"] == "screened"]
    assert len(lines) == len(run.screened) > 20
    assert max(map(len, lines)) <= 220
    again = list(reports(path))
    for report, read in zip(run.sink.reports, again, strict=True):
        assert [layer.name for layer in read.new] == [layer.name for layer in report.new]
        known = {each.name: each for each in read.screened}
        assert known.keys() == {each.name for each in report.screened}
        for each in report.screened:
            assert known[each.name].is_new == each.is_new
            assert known[each.name].lambda_max == pytest.approx(each.lambda_max, rel=1e-4)
            assert (known[each.name].step, known[each.name].N) == (each.step, each.N)


def test_a_matrix_that_is_not_finite_is_read_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A screening finds that too, and reports no norm."""
    run = Training(monkeypatch).train(10 * EVERY)
    last = {layer.name: layer.step for layer in run.sink.reports[-1]}
    name = sorted(last, key=last.__getitem__)[RARE]
    monkeypatch.setattr(Reader, "drifts", lambda _reader, names: dict.fromkeys(names, 2e-3))
    with torch.no_grad():
        run.model.get_submodule(name).get_parameter("weight")[0, 0] = torch.nan
    before = len(run.sink.reports)
    for _ in range(3 * EVERY):
        run.clock.passes(STEP)
        assert run.monitor is not None
        run.monitor.step()
    read = [layer for report in run.sink.reports[before:] for layer in report.new if layer.name == name]
    assert [layer.status for layer in read][:1] == ["nonfinite"]
    later = [each for each in run.screened if each.name == name and each.step > before * EVERY]
    assert later == []


def test_norms_wait_for_the_report_of_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where readings are behind, so that a matrix is screened again before the report of the due step before."""
    gate = threading.Event()
    monkeypatch.setattr(Planning, "here", lambda *_, **__: ["0"])
    run = Training(monkeypatch, watched=False)
    run.watch(mode="thread", workers=0, plugins=[waiting_measure(gate)()])
    assert run.monitor is not None
    run.train(3 * EVERY)
    assert run.sink.reports == []
    gate.set()
    run.monitor.flush()
    found = [[each.step for each in report.screened if each.is_new] for report in run.sink.reports]
    assert [set(steps) for steps in found] == [{EVERY}, {2 * EVERY}, {3 * EVERY}]
    assert all(each.step <= report.step for report in run.sink.reports for each in report.screened)
    run.monitor.close()
