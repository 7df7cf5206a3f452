"""Check that CUDA graphs can be captured and replayed while a reading is in flight in its thread."""

import time
from collections.abc import Callable, Iterator
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import SGD

from esdmon.runtime.monitor import Monitor
from esdmon.selftest.harness import Machine, Row, explain, verdict
from esdmon.selftest.models import against_clones, faults_of
from esdmon.sinks import MemorySink
from esdmon.watching import watch

_REPLAYS = 200
_EVERY = 10
_WIDTH, _DEPTH = 1024, 12
_PAUSE = 0.04  # seconds in each layer of a capture, so that the thread begins the next matrix meanwhile


@final
class _Pause(nn.Module):
    """A layer that returns its input, and sleeps during a capture; replays do not run Python."""

    def forward(self, x: Tensor) -> Tensor:
        """Wait where a graph is captured, and return the input."""
        if torch.cuda.is_current_stream_capturing():
            time.sleep(_PAUSE)
        return x


@final
class _Run:
    """A network that trains on a fixed batch from a fixed seed, with or without a monitor."""

    def __init__(self, machine: Machine, *, watched: bool, pauses: bool) -> None:
        self.machine = machine
        torch.manual_seed(5)
        layers: list[nn.Module] = []
        for _ in range(_DEPTH):
            layers += [nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), *([_Pause()] if pauses else [])]
        network = nn.Sequential(*layers).to(machine.device)
        self.model: Callable[..., Any] = network
        self.module = layers[0]
        self.optimizer = SGD(network.parameters(), lr=1e-2, momentum=0.9)
        self.x = torch.randn(256, _WIDTH, device=machine.device)
        self.sink = MemorySink()
        self.clones: dict[int, Tensor] = {}
        self.monitor: Monitor | None = None
        if watched:
            self.monitor = watch(network, every=_EVERY, budget=None, mode="thread", sinks=[self.sink], alerts=None)

    def train(self) -> None:
        """Take a step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def begin_reading(self) -> None:
        """Start a reading, and leave it in flight."""
        if self.monitor is not None:
            self.monitor.step(_EVERY)
            self._clone(self.monitor)

    def count(self) -> None:
        """Count a step with the monitor, and keep the first weight of a due step."""
        if self.monitor is not None and self.monitor.step():
            self._clone(self.monitor)

    def _clone(self, monitor: Monitor) -> None:
        self.clones[monitor.steps] = self.module.get_parameter("weight").detach().clone()

    def check(self) -> tuple[list[str], str]:
        """Close the monitor, and return the faults of the readings, and their figures."""
        wrong = []
        if self.monitor is not None:
            self.monitor.close()
            wrong = faults_of(self.monitor)
        news = [each for report in self.sink.reports for each in report.new]
        wrong += [f"step {each.step} {each.name}: {each.status}, {each.reason}" for each in news if each.status != "ok"]
        off, worst, _ = against_clones(self.sink.reports, self.clones, name="0")
        wrong += off
        if len(news) < _DEPTH:
            wrong.append(f"only {len(news)} readings")
        seconds = self.sink.reports[0].seconds if self.sink.reports else 0.0
        return wrong, f"{len(news)} readings (the first sweep {seconds:.2f} s), lambda_max within {worst:.1e} of clones"

    def what_is_known(self) -> str:
        """Return the result of `check`, or the reason why it failed."""
        try:
            wrong, text = self.check()
        except Exception as error:  # noqa: BLE001 -- CUDA may be unusable now
            return f"then {explain(error)}"
        return "; ".join([*wrong[:4], text])


Scenario = Callable[[_Run], float]


def _compare(machine: Machine, scenario: Scenario, *, pauses: bool = True) -> Row:
    """Run a scenario without a monitor, then with one; failures without a monitor are not due to esdmon."""
    plain = _Run(machine, watched=False, pauses=pauses)
    try:
        scenario(plain)
        machine.settle()
    except Exception as error:  # noqa: BLE001 -- of any kind
        return Row("SKIP", f"it fails without esdmon: {explain(error)}")
    run = _Run(machine, watched=True, pauses=pauses)
    try:
        seconds = scenario(run)
        machine.settle()
    except Exception as error:  # noqa: BLE001 -- of any kind
        return Row("FAIL", f"broken by watching: {explain(error)}; {run.what_is_known()}")
    wrong, text = run.check()
    same = torch.equal(run.module.get_parameter("weight"), plain.module.get_parameter("weight"))
    text += f"; weights {'equal' if same else 'not bit-identical'} to those without watching"
    return verdict(wrong, f"captured within {seconds:.2f} s of the begin of a reading; {_REPLAYS} steps, {text}")


def capture(machine: Machine) -> Iterator[Row]:
    """Capture a whole step with `torch.cuda.graph`, and replay it."""
    yield _compare(machine, _capture)


def _capture(run: _Run) -> float:
    side = run.machine.stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run.train()
    torch.cuda.current_stream().wait_stream(side)
    begin = time.perf_counter()
    run.begin_reading()
    graph = torch.cuda.CUDAGraph()
    run.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        run.train()
    seconds = time.perf_counter() - begin
    for _ in range(_REPLAYS):
        graph.replay()
        run.count()
    return seconds


def graphed_callables(machine: Machine) -> Iterator[Row]:
    """Capture forward and backward with `make_graphed_callables`, and train."""
    yield _compare(machine, _graphed_callables)


def _graphed_callables(run: _Run) -> float:
    begin = time.perf_counter()
    run.begin_reading()
    run.model = torch.cuda.make_graphed_callables(run.model, (run.x,))
    seconds = time.perf_counter() - begin
    for _ in range(_REPLAYS):
        run.train()
        run.count()
    return seconds


def compiled(machine: Machine) -> Iterator[Row]:
    """Train a model compiled by `torch.compile(mode="reduce-overhead")`, with a reading always in flight."""
    yield _compare(machine, _compiled, pauses=False)


def _compiled(run: _Run) -> float:
    run.model = torch.compile(run.model, mode="reduce-overhead")
    begin = time.perf_counter()
    seconds = 0.0
    for step in range(_REPLAYS):
        run.train()
        if step < 5 and run.monitor is not None:  # graphs are captured in these
            run.begin_reading()
        run.count()
        seconds = seconds if step > 5 else time.perf_counter() - begin
    return seconds
