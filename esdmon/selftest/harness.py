"""Run checks in order, isolate their failures, and print each row at once."""

import gc
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import torch

_Item = TypeVar("_Item")
_Outcome = TypeVar("_Outcome")
Result: TypeAlias = Literal["PASS", "FAIL", "SKIP", "INFO"]
PROCESS_SECONDS = 180
"""Seconds after which a check in a separate process prints its stacks and exits: a deadlock, or a very slow CPU."""
_GRACE = 40  # seconds more after which the process is killed
_THREADS = "2"  # threads of linear algebra in a process beside others: waiting threads spin
_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Machine:
    """The tested device."""

    device: torch.device

    @property
    def is_cuda(self) -> bool:
        """Return whether the device is a CUDA GPU; otherwise sizes are small, and times are not meaningful."""
        return self.device.type == "cuda"

    def stream(self) -> torch.cuda.Stream:
        """Return a new stream."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def event(self) -> torch.cuda.Event:
        """Return a new event with timing."""
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def settle(self) -> None:
        """Wait until the device has completed all queued work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    result: Result
    detail: str
    part: str = ""
    """Name of the part of the check; empty for a check of one line."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Further numbers, for the JSON."""


CheckFunction: TypeAlias = Callable[[Machine], Iterable[Row]]


@dataclass(frozen=True, slots=True)
class Check:
    """A check by name."""

    name: str
    function: CheckFunction
    needs_cuda: str = ""
    """Why the check needs a GPU; empty for one that also runs on a CPU."""
    apart: bool = False
    """True to run the check in a separate process, shared with its neighbours, since it may make CUDA unusable or
    hang."""


def verdict(wrong: Sequence[str], right: str, part: str = "", figures: Mapping[str, Any] | None = None) -> Row:
    """Return a row that fails with a list of faults, or passes with the figures."""
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        return Row("FAIL", "; ".join(wrong[:4]) + more + f" ({right})", part, figures or {})
    return Row("PASS", right, part, figures or {})


def run(checks: Sequence[Check], machine: Machine, *, json_path: Path | None = None, in_process: bool = False) -> int:
    """Run checks, print the table, and return the exit status: 1 if any row is a FAIL.

    Args:
        checks: in their order.
        machine: the tested device.
        json_path: a file that is written after each row, so that it is there after a crash.
        in_process: run all checks in this process.
    """
    rows: list[dict[str, Any]] = []
    begin = time.perf_counter()
    print(f"{'check':<{_WIDTH}} | result | detail", flush=True)
    for check, row in _rows(checks, machine, in_process=in_process):
        name = f"{check.name}.{row.part}" if row.part else check.name
        print(f"{name:<{_WIDTH}} | {row.result:<6} | {row.detail}", flush=True)
        rows.append({"check": check.name, **asdict(row), "at_seconds": round(time.perf_counter() - begin, 1)})
        if json_path is not None:
            json_path.write_text(json.dumps({"rows": rows}, indent=1, default=str), encoding="utf-8")
    counts = {result: sum(row["result"] == result for row in rows) for result in ("PASS", "FAIL", "SKIP", "INFO")}
    summary = ", ".join(f"{count} {result}" for result, count in counts.items())
    print(f"{summary} in {time.perf_counter() - begin:.0f} s", flush=True)
    return int(counts["FAIL"] > 0)


def _rows(checks: Sequence[Check], machine: Machine, *, in_process: bool) -> Iterator[tuple[Check, Row]]:
    for apart, group in itertools.groupby(checks, lambda check: check.apart and not in_process):
        if apart:
            together = tuple(group)
            done = side_by_side(lambda check: _in_own_process(check, machine), together, cores=4)
            for check, rows in zip(together, done, strict=True):
                yield from ((check, row) for row in rows)
        else:
            for check in group:
                yield from ((check, row) for row in _in_this_process(check, machine))


def _in_this_process(check: Check, machine: Machine) -> Iterator[Row]:
    """Yield the rows of a check; an exception becomes a row that fails, and later checks still run."""
    if check.needs_cuda and not machine.is_cuda:
        yield Row("SKIP", f"needs CUDA: {check.needs_cuda}")
        return
    try:
        with quiet():
            yield from check.function(machine)
    except Exception as error:  # noqa: BLE001 -- any error is a failed check
        yield Row("FAIL", explain(error))
    finally:
        _clean_up(machine)


def _in_own_process(check: Check, machine: Machine) -> list[Row]:
    if check.needs_cuda and not machine.is_cuda:
        return [Row("SKIP", f"needs CUDA: {check.needs_cuda}")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        command = ["-m", "esdmon.selftest", "--device", str(machine.device), "--only", check.name, "--in-process"]
        limit = ("--seconds", str(PROCESS_SECONDS))
        ended = python(*command, *limit, "--json", str(path), timeout=PROCESS_SECONDS + _GRACE)
        known = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = [Row(row["result"], row["detail"], row["part"], row["figures"]) for row in known]
    is_late = ended.status != 0 and ended.seconds >= PROCESS_SECONDS
    if not rows or is_late or ended.status != int(any(row.result == "FAIL" for row in rows)):
        rows.append(Row("FAIL", f"its process ended with {ended.describe()}", "process"))
    return rows


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    status: int | None
    """None if the process was ended because it took too long."""
    out: str
    err: str
    seconds: float

    def describe(self) -> str:
        """Return the status, and the stack of each thread if it was printed, else the last lines of standard error."""
        status = f"no end in {self.seconds:.0f} s" if self.status is None else f"status {self.status}"
        lines = self.err.strip().splitlines()
        inmost = [after for line, after in itertools.pairwise(lines) if line.endswith("(most recent call first):")]
        said = " / ".join(line.strip() for line in inmost or lines[-3:])
        return f"{status}: {said[-400:] or 'nothing on standard error'}"


def python(*arguments: str, timeout: float) -> Ended:
    """Run Python with arguments and the import path of this process, and return how it ended."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), _THREADS)
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    environment = os.environ | threads | path
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired as late:
        out, err = (
            each.decode(errors="replace") if isinstance(each, bytes) else "" for each in (late.output, late.stderr)
        )
        return Ended(None, out, err, time.perf_counter() - begin)
    return Ended(done.returncode, done.stdout, done.stderr, time.perf_counter() - begin)


def side_by_side(function: Callable[[_Item], _Outcome], items: Collection[_Item], *, cores: int) -> Iterator[_Outcome]:
    """Yield the results of a function for each item, computed in threads; each starts a process that uses `cores`."""
    with ThreadPoolExecutor(max(1, min(len(items), (os.cpu_count() or 1) // cores))) as pool:
        yield from pool.map(function, items)


def explain(error: BaseException) -> str:
    """Return the type and message of an exception, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}{where}"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings of esdmon, which the small and unusual models of the checks cause."""
    log = logging.getLogger("esdmon")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _clean_up(machine: Machine) -> None:
    """Free memory and restore modes before the next check."""
    torch.use_deterministic_algorithms(mode=False)
    gc.collect()
    if machine.is_cuda:
        try:
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize(machine.device)
            torch.cuda.empty_cache()
        except Exception as error:  # noqa: BLE001 -- a check has made the device unusable; the next rows fail too
            print(f"CUDA after this check: {explain(error)}", flush=True)
