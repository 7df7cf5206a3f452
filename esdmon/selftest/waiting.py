"""Check the effects of a reading on a training loop: waits, memory, and delays at the end of the process."""

import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from esdmon.runtime.monitor import Monitor
from esdmon.selftest.harness import Machine, Row, explain, python, side_by_side, verdict
from esdmon.selftest.models import Training, mlp, unread
from esdmon.watching import watch

_MB = 1 << 20
_HERE = Path(__file__).parent
_EXIT_SECONDS = 12.0  # the interpreter waits 5 s for readings at its end; torch with CUDA took 4 s more on an H200


def no_wait(machine: Machine) -> Iterator[Row]:
    """Count synchronisations in the optimizer's hook, by the line of esdmon that causes them."""
    training = Training(machine, options={"every": 10, "budget": None, "mode": "thread"})
    for _ in range(10):
        training.step()
    training.flush()
    work = torch.randn(8192, 8192, device=machine.device)
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    held: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for step in range(11, 31):
        due = step % 10 == 0
        training.backward()
        machine.settle()
        for _ in range(8):  # keeps the device busy, so that a wait is noticed
            torch.mm(work, work)
        with counted_waits() as waits:
            begin = time.perf_counter()
            training.optimizer.step()
            middle = time.perf_counter()
        machine.settle()
        held[due].append((1e3 * (middle - begin), 1e3 * (time.perf_counter() - begin)))
        found[due] += waits
    failures = training.close()
    times = {due: [sum(column) / len(column) for column in zip(*held[due], strict=True)] for due in held}
    text = {
        due: f"step() returned after {host:.1f} ms, the device was done after {all_:.1f} ms"
        for due, (host, all_) in times.items()
    }
    figures = {
        "waits": {str(due): dict(each) for due, each in found.items()},
        "ms": {str(due): held[due] for due in held},
    }
    yield verdict(
        [*listed(found[False]), *failures],
        f"18 steps that are not due: nothing synchronises; {text[False]}",
        "other_steps",
    )
    copies = Counter({line: count for line, count in found[True].items() if line.startswith("staging.py")})
    yield verdict(listed(copies), "copying the weights synchronises nowhere", "copies")
    lines = "; ".join(listed(found[True])) or "none"
    yield Row(
        "INFO",
        f"{found[True].total()} synchronising operations in 2 due steps: {lines}; {text[True]}",
        "due_steps",
        figures,
    )


def listed(waits: Counter[str]) -> list[str]:
    """Return lines of the source with counts, the most frequent first."""
    return [f"{count} × {line}" for line, count in waits.most_common()]


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Count operations that make the host wait for a CUDA device, by the line of esdmon that causes them.

    torch warns of copies to the host and of waits for a stream, but not of waits for the whole device.
    """
    found: Counter[str] = Counter()

    def note(what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if _is_ours(frame.filename)]
        last = frames[-1] if frames else None
        line = f"{Path(last.filename).name}:{last.lineno} {last.name}" if last else "outside esdmon"
        thread = threading.current_thread()
        found[f"{line}, {what}" + ("" if thread is threading.main_thread() else f", thread {thread.name}")] += 1

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            note("a copy or stream")

    def waiting(synchronize: Any) -> Any:
        def call(*arguments: Any) -> None:
            note("the whole device")
            synchronize(*arguments)

        return call

    with (
        warnings.catch_warnings(),
        mock.patch.object(torch.accelerator, "synchronize", waiting(torch.accelerator.synchronize)),
        mock.patch.object(torch.cuda, "synchronize", waiting(torch.cuda.synchronize)),
    ):
        warnings.simplefilter("always")
        warnings.showwarning = show
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


def _is_ours(filename: str) -> bool:
    path = Path(filename)
    return path.is_relative_to(_HERE.parent) and not path.is_relative_to(_HERE)


def memory(machine: Machine) -> Iterator[Row]:
    """Measure the GPU memory that a due step takes, and repeat it with nearly no free memory."""
    for mode in ("thread", "sync"):
        yield _taken(machine, mode)
    torch.use_deterministic_algorithms(mode=True)
    plain = _fill_and_release(machine, None, None)[0]
    total = torch.cuda.mem_get_info()[1]
    # 40 MB suffice for the training, which needs 16 MB, but not for four copies of a weight.
    for name, left in (("5_percent_left", total // 20), ("40_MB_left", 40 * _MB)):
        for mode in ("sync", "thread"):
            yield _under_ballast(machine, plain, f"{name}_{mode}", left, mode)


def _taken(machine: Machine, mode: str) -> Row:
    """Return the memory that due steps take in addition to what is allocated before them."""
    training = Training(machine, lambda: mlp(4096, 2), (1024, 4096))
    for _ in range(3):
        training.step()
    monitor = watch(training.model, every=1, budget=None, mode=mode, sinks=[training.sink])
    training.monitor = monitor
    figures = []
    for _ in range(3):
        machine.settle()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
        monitor.step()
        machine.settle()
        figures.append(
            {
                "peak_MB": (torch.cuda.max_memory_allocated() - before[0]) / _MB,
                "kept_MB": (torch.cuda.memory_allocated() - before[0]) / _MB,
                "reserved_MB": (torch.cuda.memory_reserved() - before[1]) / _MB,
                "outside_torch_MB": (before[2] - torch.cuda.mem_get_info()[0]) / _MB,
            }
        )
        monitor.flush()
        training.step()
    text = "; ".join(
        f"due step {k}: peak {each['peak_MB']:.0f}, kept {each['kept_MB']:.0f}, reserved {each['reserved_MB']:+.0f}, "
        f"free memory of the device {-each['outside_torch_MB']:+.0f} MB"
        for k, each in enumerate(figures, 1)
    )
    return verdict(training.close(), f"weights of 64 MB. {text}", f"taken_{mode}", {"due steps": figures})


def _fill_and_release(machine: Machine, mode: str | None, left: int | None) -> tuple[Training, dict[str, int], int]:
    """Train with only this many free bytes of memory, then with all; return torch's counts.

    Args:
        machine: the device, with CUDA.
        mode: mode of the monitor; None trains without one.
        left: free bytes; None leaves all memory free.
    """
    training = Training(machine, lambda: mlp(2048, 2), (256, 2048))
    for _ in range(3):  # fills torch's cache with the memory that training needs
        training.step()
    if mode is not None:
        training.monitor = watch(
            training.model, training.optimizer, every=8, budget=None, mode=mode, sinks=[training.sink]
        )
    machine.settle()
    free = torch.cuda.mem_get_info()[0]
    counters = ("num_ooms", "num_alloc_retries", "reserved_bytes.all.current")
    ballast = None if left is None else torch.empty(max(0, free - left), dtype=torch.uint8, device=machine.device)
    before = torch.cuda.memory_stats()
    for _ in range(24):
        training.step()
    machine.settle()
    after = torch.cuda.memory_stats()
    training.flush()
    crowded = len(training.sink.reports)
    del ballast
    for _ in range(70):
        training.step()
    machine.settle()
    return training, {name: after.get(name, 0) - before.get(name, 0) for name in counters}, crowded


def _under_ballast(machine: Machine, plain: Training, part: str, left: int, mode: str) -> Row:
    torch.cuda.empty_cache()
    try:
        _fill_and_release(machine, None, left)
    except torch.OutOfMemoryError as error:
        return Row("SKIP", f"training fails without esdmon: {explain(error)}", part)
    torch.cuda.empty_cache()
    try:
        training, counted, crowded = _fill_and_release(machine, mode, left)
    except torch.OutOfMemoryError as error:
        return Row("FAIL", f"it reached the loop: {explain(error)}", part)
    failures = training.close()
    reports = training.sink.reports
    wrong = [] if training.equals(plain) else ["losses or weights differ from those of a plain training"]
    silent = [each.name for report in reports for each in report.new if each.status != "ok" and not each.reason]
    wrong += [f"{name} has no reason" for name in silent]
    if not reports:
        wrong.append(f"no reports; {failures}")
    else:
        wrong += [
            f"not read after the memory was free: {each.name}, {each.reason}"
            for each in reports[-1]
            if each.status != "ok"
        ]
    during = [each for report in reports[:crowded] for each in report.new]
    reasons = unread(reports[:crowded])
    text = (
        f"{sum(each.status == 'ok' for each in during)} of {len(during)} readings done in it"
        + (f" (first reason: {reasons[0][:200]})" if reasons else "")
        + f"; {counted['num_ooms']} out of memory and {counted['num_alloc_retries']} emptied caches in torch; "
        f"reserved {counted['reserved_bytes.all.current'] / _MB:+.0f} MB; losses "
    )
    text += "equal" if training.equals(plain) else "differ"
    return verdict(wrong, text, part, {"counted": counted, "failures": failures})


def leaving(machine: Machine) -> Iterator[Row]:
    """End processes with a reading in flight: after `close()`, after `close()` with a time limit, and without it."""
    limits = {"close": 40.0, "close_1s": 3.0, "left_open": 1.0}
    yield from side_by_side(lambda how: _left(machine, how, limits[how]), limits, cores=4)


def _left(machine: Machine, how: str, limit: float) -> Row:
    code = f"from esdmon.selftest.waiting import leave; kept = leave({how!r}, {str(machine.device)!r})"
    ended = python("-c", code, timeout=90)
    finished = time.time()
    try:
        closing, at, busy = (float(word) for word in ended.out.split()[-3:])
    except ValueError:
        return Row("FAIL", f"its process ended with {ended.describe()}", how)
    wrong = [] if ended.status == 0 else [f"the process ended with {ended.describe()}"]
    if closing > limit:
        wrong.append(f"it took {closing:.1f} s of at most {limit:g}")
    if finished - at > _EXIT_SECONDS:
        wrong.append(f"the process then took {finished - at:.1f} s to end, of at most {_EXIT_SECONDS:g}")
    under_way = "under way" if busy else "finished already"
    text = f"reading {under_way}; {how} {closing:.2f} s, then the process ended in {finished - at:.2f} s"
    return verdict(wrong, text, how)


def leave(how: str, device: str) -> Monitor:
    """Begin a reading, and end in one of three ways. It runs in a separate process, which keeps the monitor."""
    machine = Machine(torch.device(device))
    width = 4096 if machine.is_cuda else 1024
    training = Training(machine, lambda: mlp(width, 3), (64, width))
    monitor = watch(training.model, training.optimizer, every=1, budget=None, mode="thread", sinks=[training.sink])
    training.step()
    training.step()
    machine.settle()
    busy = not training.sink.reports
    begin = time.perf_counter()
    if how == "close":
        monitor.close()
    elif how == "close_1s":
        monitor.close(timeout=1)
    print(time.perf_counter() - begin, time.time(), int(busy), flush=True)
    return monitor
