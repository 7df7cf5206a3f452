"""Check that readings on a GPU are correct: against a CPU, on streams, and during training."""

import copy
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.analysis import analyze
from esdmon.records import LayerReport, Report
from esdmon.selftest.harness import Machine, Row, verdict
from esdmon.selftest.models import DTYPES, TORN, Training, against_clones, faults_of, lambda_max, zoo
from esdmon.sinks import MemorySink
from esdmon.watching import watch
from esdmon.weights import Screener, discover, sum_of_squares

_STEPS = 60  # steps of the trainings that are compared bit by bit


def reading(machine: Machine) -> Iterator[Row]:
    """Compare readings on the device with readings of a copy on the CPU, for layers of many kinds."""
    for dtype in DTYPES:
        model = zoo(dtype, large=machine.is_cuda)
        expected = analyze(model)
        report = analyze(copy.deepcopy(model).to(machine.device))
        yield compared(report, expected, str(dtype).removeprefix("torch."), 1e-4 if dtype == torch.float32 else 1e-2)


def screening(machine: Machine) -> Iterator[Row]:
    """Compare screened norms with readings, also norms computed from a part of a sharded weight."""
    model = zoo(torch.float32, large=machine.is_cuda)
    expected = {each.name: each.measures for each in analyze(model)}
    screener = Screener()
    squares = {}
    for matrix in discover(model.to(machine.device)).matrices:
        screener.screen(matrix, 0)
        squares[matrix.name], _ = sum_of_squares(matrix.to_stack(matrix.read()))
    found = screener.take()
    machine.settle()
    found += screener.take()
    wrong, lowest = [], 1.0
    for each in found:
        frobenius, spectral = (expected[each.name][name] for name in ("frobenius_norm", "spectral_norm"))
        ratio = (each.spectral_norm / spectral) ** 2
        lowest = min(lowest, ratio)
        if not 1 - each.residual - TORN <= ratio <= 1 + TORN:
            wrong.append(f"{each.name}: lambda_max is {ratio:.6f} of a reading's, residual {each.residual:.1e}")
        if not math.isclose(each.frobenius_norm, frobenius, rel_tol=TORN):
            wrong.append(f"{each.name}: the Frobenius norm is {each.frobenius_norm}, of a reading {frobenius}")
        norm = math.sqrt(float(squares[each.name]))
        if not math.isclose(norm, frobenius, rel_tol=TORN):
            wrong.append(f"{each.name}: the sum of squares gives the Frobenius norm {norm}, a reading {frobenius}")
    if not found:
        wrong.append("nothing was screened")
    yield verdict(wrong, f"{len(found)} of {len(expected)} layers; lambda_max too small by {1 - lowest:.1e} at most")


def compared(report: Report, expected: Report, part: str, tolerance: float, note: str = "") -> Row:
    """Return a row on two readings of the same weights: equal phases, alpha within a tolerance, no failure."""
    wrong = [f"{each.name}: {each.status}, {each.reason}" for each in report if each.status != "ok"]
    alpha, edge = {}, {}
    for each, other in zip(report, expected, strict=True):
        alpha[each.name] = _difference(each, other, "alpha")
        edge[each.name] = _difference(each, other, "lambda_max")
        if not alpha[each.name] <= tolerance:
            wrong.append(f"{each.name}: alpha {each.measures.get('alpha')}, on the CPU {other.measures.get('alpha')}")
        if not edge[each.name] <= TORN:
            wrong.append(f"{each.name}: lambda_max is off by {edge[each.name]:.1e}")
        if each.phase is not other.phase:
            wrong.append(f"{each.name}: {each.phase.value}, on the CPU {other.phase.value}")
    worst = max(alpha, key=alpha.__getitem__)
    exact = sum(each.precision == "float64" for each in report)
    text = (
        f"{len(report)} layers, {exact} in float64; alpha within {alpha[worst]:.1e} ({worst}), lambda_max within "
        f"{max(edge.values()):.1e}; {sum(a.phase is b.phase for a, b in zip(report, expected, strict=True))} phases "
        f"equal{note}"
    )
    return verdict(wrong, text, part, {"alpha": alpha, "lambda_max": edge})


def _difference(one: LayerReport, other: LayerReport, measure: str) -> float:
    """Return the relative difference of a measure; infinite if it is defined for only one of the two readings."""
    a, b = one.measures.get(measure, math.nan), other.measures.get(measure, math.nan)
    if math.isnan(a) and math.isnan(b):
        return 0.0
    return math.inf if math.isnan(a) or math.isnan(b) else abs(a - b) / max(abs(b), 1e-300)


def identical(machine: Machine) -> Iterator[Row]:
    """Compare losses and weights of trainings with and without a monitor, bit by bit."""
    torch.use_deterministic_algorithms(mode=True)
    plain, again = (_trained(machine, None) for _ in range(2))
    if not plain.equals(again):
        yield Row("SKIP", "the same training without watch() is not the same twice on this device")
        return
    ways: dict[str, dict[str, Any]] = {
        "default": {"every": 20},
        "sync": {"every": 20, "mode": "sync"},
        "every_step": {"every": 1, "budget": None},
        "thread": {"every": 1, "budget": None, "mode": "thread"},
        "process": {"every": 1, "budget": None, "mode": "process"},
    }
    for name, options in ways.items():
        watched = _trained(machine, options)
        wrong = watched.close()
        if not watched.equals(plain):
            losses = zip(watched.losses, plain.losses, strict=True)
            first = next((k for k, (a, b) in enumerate(losses) if not torch.equal(a, b)), _STEPS)
            wrong.append(f"losses differ from step {first} on")
        if not watched.readings:
            wrong.append("nothing was read")
        yield verdict(wrong, f"{_STEPS} losses and all weights equal; {watched.readings} readings", name)


def _trained(machine: Machine, options: Mapping[str, Any] | None) -> Training:
    training = Training(machine, options=options)
    for _ in range(_STEPS):
        training.step()
    machine.settle()
    return training


def on_device(machine: Machine) -> Iterator[Row]:
    """Compare readings by the GPU in the hook with readings of clones, while training continues."""
    for dtype in DTYPES:
        layers = {name: layer for name, layer in zoo(dtype, large=True).items() if name in ("large", "largest")}
        model, sink = nn.ModuleDict(layers).to(machine.device), MemorySink()
        clones: list[dict[str, Tensor]] = []
        seconds = []
        with watch(model, every=1, budget=None, mode="device", sinks=[sink], alerts=None) as monitor:
            for _ in range(3):
                with torch.no_grad():
                    for layer in layers.values():
                        layer.get_parameter("weight").mul_(1.5)
                clones.append(
                    {name: layer.get_parameter("weight").detach().cpu().clone() for name, layer in layers.items()}
                )
                begin = time.perf_counter()
                monitor.step()
                seconds.append(time.perf_counter() - begin)
                monitor.flush()
        part, row = str(dtype).removeprefix("torch."), None
        wrong = faults_of(monitor)
        if len(sink.reports) != len(clones):
            wrong.append(f"{len(sink.reports)} reports of {len(clones)} steps")
        for report, weights in zip(sink.reports, clones, strict=False):
            row = compared(report, analyze(weights, precision="exact"), part, 1e-4)
            wrong += [] if row.result == "PASS" else [f"step {report.step}: {row.detail}"]
            wrong += [f"{each.name}: {each.precision}" for each in report if each.precision != "float64"]
        waits = ", ".join(f"{1e3 * each:.0f}" for each in seconds)
        detail = row.detail if row is not None else "nothing was read"
        yield verdict(wrong, f"{detail}; the hook took {waits} ms", part, {"seconds": seconds})


def torn(machine: Machine) -> Iterator[Row]:
    """Compare the readings of a weight that changes much in each step with clones taken at the same steps."""
    shape = (131072, 64) if machine.is_cuda else (8192, 64)
    base = 0.01 * torch.randn(shape, generator=torch.Generator("cpu").manual_seed(1))
    for mode in ("thread", "sync"):
        layer = nn.Linear(shape[1], shape[0], bias=False)
        with torch.no_grad():
            layer.weight.copy_(base)
        layer.to(machine.device)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
        layer.weight.grad = torch.full_like(layer.weight, -1.0)  # each step adds 1 to all elements
        sink, clones = MemorySink(), dict[int, Tensor]()
        with watch(layer, optimizer, every=1, budget=None, mode=mode, sinks=[sink], alerts=None) as monitor:
            for _ in range(40):
                optimizer.step()
                clones[monitor.steps] = layer.weight.detach().clone()
                if monitor.steps % 8 == 0:  # sometimes wait for the thread, so that more steps are read
                    machine.settle()
                    time.sleep(0.05)
        wrong, worst, count = against_clones(sink.reports, clones)
        if count < 5:
            wrong.append(f"only {count} readings")
        yield verdict(wrong, f"{count} readings at steps to 40, lambda_max within {worst:.1e} of the clones'", mode)
    yield _sensitivity(base)
    yield from _unordered(machine)


def _sensitivity(base: Tensor) -> Row:
    """Return whether the check would find a copy with 1 % of its rows from the next step, at the last step."""
    whole = base + 40
    mixed = whole.clone()
    mixed[: len(mixed) // 100] += 1
    error = abs(lambda_max(mixed) / lambda_max(whole) - 1)
    return verdict(
        [] if error > TORN else ["such a tear would not be seen"],
        f"1 % of the rows from the next step change lambda_max by {error:.1e} (limit {TORN:g})",
        "control_tear",
    )


def _unordered(machine: Machine) -> Iterator[Row]:
    """Yield how many copies are torn without synchronisation, to show whether this device can tear copies."""
    if not machine.is_cuda:
        yield Row("SKIP", "needs CUDA: copies on another stream", "control_unordered")
        return
    weight = torch.zeros(8192, 4096, device=machine.device)
    host = torch.empty(weight.shape, pin_memory=True)
    side, count = machine.stream(), 0
    for _ in range(20):
        for _ in range(8):
            weight.add_(1)
        with torch.cuda.stream(side):
            host.copy_(weight, non_blocking=True)
        for _ in range(64):
            weight.add_(1)
        machine.settle()
        count += int(host.min() != host.max())
    text = f"{count} of 20 copies on a stream that waits for nothing are torn"
    yield Row("PASS" if count else "INFO", text if count else f"{text}: tearing was not seen", "control_unordered")


def streams(machine: Machine) -> Iterator[Row]:
    """Read under autocast, and weights that another stream has updated."""
    model = zoo(torch.float32, large=False)
    expected = analyze(model)
    model.to(machine.device)
    with torch.autocast(machine.device.type, torch.bfloat16):
        report = analyze(model)
    yield compared(report, expected, "autocast", 1e-4)
    for where, mode in itertools.product(("step_inside", "step_after"), ("thread", "sync")):
        part = f"{where}_{mode}"
        if machine.is_cuda:
            yield _updated_on_a_side_stream(machine, part, inside=where == "step_inside", mode=mode)
        else:
            yield Row("SKIP", "needs CUDA: a second stream", part)


def _updated_on_a_side_stream(machine: Machine, part: str, *, inside: bool, mode: str) -> Row:
    """Update a weight behind long work on a side stream; read there, or on the first stream once that waits for it."""
    layer = nn.Linear(64, 65536, bias=False).to(machine.device)
    work = torch.randn(8192, 8192, device=machine.device)
    side, main, sink = machine.stream(), torch.cuda.current_stream(), MemorySink()
    clones: dict[int, Tensor] = {}
    with watch(layer, every=1, budget=None, mode=mode, sinks=[sink], alerts=None) as monitor:
        for _ in range(10):
            side.wait_stream(main)
            with torch.cuda.stream(side), torch.no_grad():
                for _ in range(4):
                    work = torch.mm(work, work).div_(8192)
                layer.weight.add_(1)
                if inside:
                    monitor.step()
                    clones[monitor.steps] = layer.weight.detach().clone()
            main.wait_stream(side)
            if not inside:
                monitor.step()
                clones[monitor.steps] = layer.weight.detach().clone()
            monitor.flush()
    wrong, worst, count = against_clones(sink.reports, clones)
    return verdict(wrong + ([] if count else ["nothing was read"]), f"{count} readings, within {worst:.1e}", part)
