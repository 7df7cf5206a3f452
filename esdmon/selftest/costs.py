"""Describe the machine, and measure the slow-down of steps and the time of each part of a reading."""

import itertools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import torch
from torch import Tensor, nn

from esdmon.runtime.workers.cpus import cores
from esdmon.selftest.harness import Machine, Row, verdict
from esdmon.selftest.models import faults_of, mlp
from esdmon.sinks import MemorySink
from esdmon.watching import watch

_SLOWER = 1.03  # the default budget of 1 %, and a part of the two seconds that a run may spend in advance
_CALLS = 200  # number of calls in a mean time
_SURE = 0.95  # probability of the interval of a ratio


def environment(machine: Machine) -> Iterator[Row]:
    """Describe the machine, and measure the CUDA calls that esdmon makes in a hook."""
    limit = Path("/sys/fs/cgroup/cpu.max")
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
    versions += f"scipy {scipy.__version__}"
    quota = limit.read_text(encoding="utf-8").strip() if limit.exists() else "unknown"
    text = f"{versions}; {os.cpu_count()} cores, {cores()} usable, {torch.get_num_threads()} threads, cpu.max {quota}"
    yield Row("INFO", text, "host", {"device": str(machine.device)})
    if machine.is_cuda:
        its = torch.cuda.get_device_properties(machine.device)
        text = f"{its.name}, {its.major}.{its.minor}, {its.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        yield Row("INFO", text, "device")
    size = 8192 if machine.is_cuda else 512
    rates = {}
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(size, size, device=machine.device, dtype=dtype)
        rates[dtype] = 2e-9 * size**3 / timed(machine, partial(torch.mm, x, x), 3)[0]
    share = rates[torch.float64] / rates[torch.float32]
    text = f"products {rates[torch.float32]:.1f} TFLOP/s in float32, {rates[torch.float64]:.1f} in float64"
    yield Row("INFO", f"{text}: {'fast' if share > 0.25 else 'slow'} ({share:.2f})", "float64", {"share": share})
    if machine.is_cuda:
        event = machine.event()
        calls: dict[str, Callable[[], Any]] = {
            "record": event.record,
            "query": event.query,
            "mem_get_info": torch.cuda.mem_get_info,
            "memory_stats": torch.cuda.memory_stats,
            "synchronize": torch.cuda.synchronize,
        }
        costs = {name: _microseconds(machine, call) for name, call in calls.items()}
        yield Row("INFO", ", ".join(f"{name} {cost:.1f} µs" for name, cost in costs.items()), "calls", costs)


def _microseconds(machine: Machine, call: Callable[[], Any]) -> float:
    """Return the mean microseconds of a call, without the first call."""
    call()
    machine.settle()
    begin = time.perf_counter()
    for _ in range(_CALLS):
        call()
    return 1e6 * (time.perf_counter() - begin) / _CALLS


def timed(machine: Machine, work: Callable[[], Any], repeats: int = 2) -> tuple[float, float, float]:
    """Return milliseconds of the device, the host and this thread's CPU: medians over repeats, without the first."""
    work()
    rows = []
    for _ in range(repeats):
        machine.settle()
        begin, busy = time.perf_counter(), time.thread_time()
        start = _mark(machine)
        work()
        host, cpu = time.perf_counter() - begin, time.thread_time() - busy
        end = _mark(machine)
        machine.settle()
        rows.append((_between(start, end), 1e3 * host, 1e3 * cpu))
    device, hosts, cpus = (statistics.median(column) for column in zip(*rows, strict=True))
    return device, hosts, cpus


def _mark(machine: Machine) -> Any:
    """Return an event that is queued now, or the time on a CPU."""
    if not machine.is_cuda:
        return time.perf_counter()
    event = machine.event()
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) if isinstance(start, torch.cuda.Event) else 1e3 * float(end - start)


def step_times(machine: Machine) -> Iterator[Row]:
    """Compare the times of steps with and without watching: large steps, and many short kernels."""
    sizes = {"small": (64, 2, 64, 40)}
    if machine.is_cuda:
        sizes = {"large": (4096, 4, 4096, 250), "short_kernels": (512, 24, 256, 100)}
    for part, (width, depth, batch, steps) in sizes.items():
        yield _step_times(machine, part, partial(mlp, width, depth), (batch, width), steps)


def _step_times(
    machine: Machine, part: str, network: Callable[[], nn.Module], shape: tuple[int, int], steps: int
) -> Row:
    """Train two copies of a network in alternating blocks of steps, one of them with a monitor."""
    pairs = 8 if machine.is_cuda else 4
    x = torch.randn(shape, device=machine.device)
    sink = MemorySink()
    models, optimizers = {}, {}
    for watched in (False, True):
        torch.manual_seed(2)
        models[watched] = network().to(machine.device)
        optimizers[watched] = torch.optim.AdamW(models[watched].parameters(), lr=1e-4, fused=machine.is_cuda)
    # One monitor for all blocks, since each monitor may spend two seconds in advance.
    monitor = watch(models[True], optimizers[True], every=steps // 2, sinks=[sink])

    def block(*, watched: bool) -> list[float]:
        marks = [_mark(machine)]
        for _ in range(steps):
            _step(machine, models[watched], optimizers[watched], x)
            marks.append(_mark(machine))
        machine.settle()
        monitor.flush()  # outside of the timed part, so that blocks without a monitor are not slowed down
        return [_between(start, end) for start, end in itertools.pairwise(marks)]

    block(watched=False)
    blocks = []
    for k in range(pairs):
        order = (True, False) if k % 2 else (False, True)
        both = {watched: block(watched=watched) for watched in order}
        blocks.append((both[True], both[False]))
    overhead = monitor.overhead
    monitor.close()
    layers = [layer for report in sink.reports for layer in report.new]
    exact = sum(layer.precision == "float64" for layer in layers)  # computed by the GPU in the hook
    ratios = [sum(on) / sum(off) for on, off in blocks]
    on, off = ([ms for pair in blocks for ms in pair[k]] for k in (0, 1))
    low, high = interval(ratios)
    text = (
        f"with / without {statistics.mean(ratios):.3f} [{low:.3f}, {high:.3f}], {pairs} pairs of {steps} steps; "
        f"median step {statistics.median(on):.2f} / {statistics.median(off):.2f} ms, "
        f"longest {max(on):.1f} / {max(off):.1f} ms; "
        f"{len(layers)} readings, {exact} in float64; overhead {overhead:.2%} by its own count"
    )
    wrong = faults_of(monitor)
    if machine.is_cuda and low > _SLOWER:
        wrong.append(f"slower than {_SLOWER}")
    return verdict(wrong, text, part, {"ratios": ratios, "on": _tenths(on), "off": _tenths(off)})


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of the ratios, by Student's t."""
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    low, high = scipy.stats.t.interval(_SURE, len(ratios) - 1, loc=statistics.mean(ratios), scale=max(error, 1e-12))
    return float(low), float(high)


def _step(machine: Machine, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    """Take a training step."""
    with torch.autocast(machine.device.type, torch.bfloat16):
        loss = model(x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _tenths(times: Sequence[float]) -> list[float]:
    return statistics.quantiles(times, n=10)


def estimates(machine: Machine) -> Iterator[Row]:
    """Measure the device, host and thread-CPU milliseconds of products, eigenvalues and copies."""
    random = torch.Generator("cpu").manual_seed(4)
    for m in (512, 1024, 2048, 4096) if machine.is_cuda else (64, 128):
        weight = torch.randn(2 * m, m, generator=random).to(machine.device)
        figures = {}
        for dtype in (torch.float32, torch.float64):
            name = str(dtype).removeprefix("torch.float")
            wide = weight.to(dtype)
            gram = wide.mT @ wide
            figures[f"product {name}"] = timed(machine, partial(torch.mm, wide.mT, wide))
            figures[f"eigvalsh {name}"] = timed(machine, partial(torch.linalg.eigvalsh, gram))
        text = "; ".join(f"{name}: {a:.2f}/{b:.2f}/{c:.2f}" for name, (a, b, c) in figures.items())
        yield Row("INFO", f"ms device/host/CPU: {text}", f"M_{m}", figures)
    if not machine.is_cuda:
        yield Row("SKIP", "needs CUDA: copies to the host", "copies")
        return
    source = torch.empty(64 << 20, device=machine.device)  # 256 MB
    pageable, pinned = torch.empty(source.shape), torch.empty(source.shape, pin_memory=True)
    rates = {
        name: source.nbytes / 1e6 / timed(machine, partial(to.copy_, source, non_blocking=True), 3)[0]
        for name, to in (("pageable", pageable), ("pinned", pinned))
    }
    begin = time.perf_counter()
    again = torch.empty(source.numel() + 1, pin_memory=True)
    rates["pin 256 MB, ms"] = 1e3 * (time.perf_counter() - begin)
    del again
    text = ", ".join(f"{name} {rate:.1f}" + (" GB/s" if "ms" not in name else "") for name, rate in rates.items())
    yield Row("INFO", f"256 MB to the host: {text}", "copies", rates)
