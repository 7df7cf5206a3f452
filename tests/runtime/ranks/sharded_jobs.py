"""Train models that are spread over the ranks of a job, and compare what is read with readings of the whole model."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

import esdmon
from esdmon.options import WatchOptions
from esdmon.records import LayerReport, Report
from esdmon.runtime.ranks.fragment_exchange import FragmentExchange
from esdmon.runtime.reading.options import ReadingOptions
from esdmon.runtime.reading.reader import Reader
from esdmon.sinks import MemorySink
from esdmon.weights import Selection
from tests.runtime.ranks.collectives import no_collective
from tests.runtime.ranks.sharded_ways import made

STEPS = 5


def gather(whole: nn.Module, parameters: dict[str, Any], model: nn.Module) -> None:
    """Copy the weights into the model that is in one piece, by torch's own collectives."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            values = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    else:
        values = {name: full(weight) for name, weight in parameters.items()}
    with torch.no_grad():
        for name, weight in whole.named_parameters():
            weight.copy_(next(value for other, value in values.items() if other.endswith(name)))


def full(weight: Any) -> Tensor:
    tensor: Tensor = weight.full_tensor() if isinstance(weight, DTensor) else weight
    return tensor.detach()


def reading_of(whole: nn.Module, state: dict[str, Tensor]) -> Report:
    """What `watch()` would read of a model in one piece."""
    whole.load_state_dict(state)
    options = WatchOptions.from_keywords({"every": 1}, besides=("model", "optimizer", "hook", "first_step"))
    reading = ReadingOptions(options.chosen_measures, selection=Selection(getattr(whole, "layers", None)))
    reader = Reader(whole, options.known, reading)
    return reader.report(0, [reader.read_one(matrix.name, 0) for matrix in reader.matrices], 0.0)


def train(way: str, *, watched: bool) -> dict[str, Any]:
    """A few steps; the losses, and of a watched model how its readings differ from those of the one in one piece."""
    whole, model = made(way)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rank = distributed.get_rank()
    generator = torch.Generator().manual_seed(0 if "tensor" in way else rank)
    sink, losses = MemorySink(), []
    states: dict[int, dict[str, Tensor]] = {}
    options: dict[str, Any] = {"every": 1, "budget": None, "sinks": [sink], "layers": getattr(whole, "layers", None)}
    monitor = esdmon.watch(model, optimizer, **options) if watched else None
    for step in range(1, STEPS + 1):
        loss = model(whole.batch(generator)).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        if way == "fsdp2, looked at between":  # from here on the module shows whole parameters, soon a step old
            with torch.no_grad():
                model(whole.batch(generator))
        optimizer.step()
        losses.append(float(full(loss)))
        if monitor is not None:
            gather(whole, parameters, model)
            states[step] = {name: weight.clone() for name, weight in whole.state_dict().items()}
            distributed.barrier()
    if monitor is None:
        return {"losses": losses}
    with copies_left() as left:
        monitor.close(timeout=20)
    moved = [layer.update_ratio for layer in sink.reports[-1] if layer.trainable] if sink.reports else []
    return {"losses": losses, "moved": moved, "left": left} | compared(monitor, sink, whole, states)


@dataclass
class Training:
    """A training of a model that another library has spread over the ranks, without a hook on its optimizer."""

    model: Any
    step: Callable[[], Any]
    """Trains one step, and returns its losses."""
    gather: Callable[[], dict[str, Tensor]]
    """Returns the weights of the whole model, by collectives."""


@dataclass
class TrainedTwice:
    """The same training with a monitor and without."""

    losses: list[Any]
    plain: list[Any]
    """The losses without a monitor."""
    collectives: int
    """Number of collectives that the monitor has called in the steps."""
    monitor: esdmon.Monitor
    sink: MemorySink
    states: dict[int, dict[str, Tensor]]
    """The weights of the whole model after each step."""

    def compared(self, whole: Any) -> dict[str, Any]:
        """How the readings differ from those of the whole model, and what `check_undisturbed` needs."""
        result = compared(self.monitor, self.sink, whole, self.states)
        return result | {"losses": self.losses, "plain": self.plain, "collectives": self.collectives}


def train_twice(begin: Callable[[], Training], steps: int, **options: Any) -> TrainedTwice:
    """Begin a training with a monitor, which reads after each step, and begin it again without one."""
    training, sink = begin(), MemorySink()
    losses, collectives, states = [], 0, {}
    monitor = esdmon.watch(training.model, every=1, budget=None, sinks=[sink], **options)
    for step in range(1, steps + 1):
        losses.append(training.step())
        with no_collective() as counted:
            monitor.step()
        collectives += counted.get_total_counts()
        states[step] = training.gather()
        monitor.flush(10)
        distributed.barrier()
    monitor.close(timeout=20)
    plain = begin()
    return TrainedTwice(losses, [plain.step() for _ in range(steps)], collectives, monitor, sink, states)


def check_undisturbed(ranks: Sequence[dict[str, dict[str, Any]]]) -> None:
    """The losses of each rank are those without a monitor, to the last bit; no step has a collective of the monitor.

    Only rank 0 reports. No rank has an error.
    """
    for rank, results in enumerate(ranks):
        for way, result in results.items():
            assert json.dumps(result["losses"]) == json.dumps(result["plain"]), way  # some losses are NaN
            assert (result["collectives"], result["errors"]) == (0, []), way
            assert rank == 0 or result["read"] == [], way


@contextmanager
def copies_left() -> Iterator[list[int]]:
    """The copies of a rank that no other has fetched when its monitor stops waiting for that."""
    left: list[int] = []
    drain = FragmentExchange.drain

    def noted(exchange: FragmentExchange, timeout: float, closed: Callable[[], Collection[int]]) -> None:
        drain(exchange, timeout, closed)
        left.append(exchange.n_kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FragmentExchange, "drain", noted)
        yield left


def compared(
    monitor: esdmon.Monitor, sink: MemorySink, whole: Any, states: dict[int, dict[str, Tensor]]
) -> dict[str, Any]:
    """What a monitor has read, and how that differs from readings of the whole model in its states by step."""
    read = [layer for report in sink.reports for layer in report.new if layer.status != "skipped"]
    expected = {step: reading_of(whole, states[step]) for step in {layer.step for layer in read} | {max(states)}}
    last = expected[max(states)]
    return {
        "errors": [fault.message for fault in monitor.errors],
        "read": [[layer.name, layer.status, layer.reason, difference(layer, expected[layer.step])] for layer in read],
        "names": [layer.name for layer in last if layer.status != "skipped"],
        "frozen": [layer.name for layer in last if not layer.trainable],
        "coverage": [str(report.coverage).splitlines()[0] for report in (*sink.reports[-1:], last)],
    }


def check_read(results: dict[str, Any]) -> None:
    """Every measure of every matrix is that of the whole model, to the last bit; nothing is missing.

    Of a weight that is trained at least twice; one that is frozen is read less often.
    """
    for way, result in results.items():
        assert result["errors"] == [], way
        assert {name for name, *_ in result["read"]} == set(result["names"]), way
        for name in result["names"]:
            readings = [reading for reading in result["read"] if reading[0] == name]
            assert len(readings) >= (1 if name in result["frozen"] else 2), (way, name)
            assert all(status == "ok" and not differing for _, status, _, differing in readings), (way, readings)
        assert len(set(result["coverage"])) == 1, (way, result["coverage"])


def difference(layer: LayerReport, report: Report) -> list[str]:
    """The measures that differ from those of the whole matrix, in any bit; one reading has no distance from another."""
    other = {"spectral_distance": layer.measures["spectral_distance"], **report[layer.name].measures}
    return [key for key, value in layer.measures.items() if not (value == other[key] or math.isnan(value))]
