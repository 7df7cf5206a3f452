"""Scan thousands of damaged and hostile checkpoints: each must end in a table or in one clear line.

    python -m tests.benchmarks.fuzz_checkpoints --count 10000
    python -m tests.benchmarks.fuzz_checkpoints --case 1234 --keep /tmp/case  # one again, with its files

Each case is a small checkpoint of some format with a few changes (`mutations`), the same for the same number. A case
fails where `esdmon scan --json` raises, ends with another status than 0, 1 or 2, prints an error of more than one line
or a reason of more than 300 characters, gives a warning, has a reading that failed for another reason than damage, runs
for more than ten seconds, lets Python look up a class, start a program, connect or write, or needs more memory than
twice the file and 48 MB, in which an undamaged one is read.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any, NoReturn

from esdmon.cli import main as run_command
from tests.benchmarks.mutations import CANARY, WRITERS, mutate

_SECONDS = 10
_LONGEST_REASON = 300
_WORKSPACE = 48 << 20
"""Bytes that a scan may take besides the file: more than those of an undamaged one."""
_FORBIDDEN = re.compile(r"pickle\.find_class|os\.(system|exec|posix_spawn|fork|remove|rename)|subprocess|socket|ctypes")
"""Audit events that a scan has no reason for."""
_DAMAGED = re.compile("truncated|damaged|cannot be read from the file")
"""In the reason of a reading that may fail, since the numbers of its tensor are damaged."""

_SKIPPED = re.compile(r"esdmon: \d+ of \d+ matrices are skipped because they cannot be read \(.{1,300}\)\.")
"""The line on damaged layers of a module, besides the table."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scan did with a case."""

    status: int | None
    """Exit status; None where it raised."""
    faults: tuple[str, ...]
    """What it must not do; empty for a case that passes."""


class Watch:
    """What Python did while a scan ran, from audit events; there is one in a process, since hooks stay."""

    def __init__(self) -> None:
        self._seen: list[str] | None = None
        self._others = set[int | None]()
        sys.addaudithook(self._take)

    @contextlib.contextmanager
    def during(self) -> Iterator[list[str]]:
        """Collect the forbidden events of a block, but not of threads that ran before, as those of wandb do."""
        self._others = {thread.ident for thread in threading.enumerate()} - {threading.get_ident()}
        self._seen = seen = list[str]()
        try:
            yield seen
        finally:
            self._seen = None

    def _take(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._seen is None or threading.get_ident() in self._others:
            return
        wrote = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if wrote or _FORBIDDEN.match(event):
            self._seen.append(f"{event} {str(arguments)[:100]}")


class TooLongError(BaseException):
    """Raised in a scan by the alarm; no handler of errors takes it."""


def make_case(number: int, seed: int, templates: Path, folder: Path) -> tuple[str, str]:
    """Write the checkpoint of a case into an empty folder, and return its format and what was done to it."""
    rng = Random(f"{seed}.{number}")  # noqa: S311 -- nothing is kept secret
    name = list(WRITERS)[number % len(WRITERS)]
    shutil.copytree(templates / name, folder, dirs_exist_ok=True)
    return name, mutate(folder, rng)


def write_templates(folder: Path) -> None:
    """Write an undamaged checkpoint of each format."""
    for name, write in WRITERS.items():
        (folder / name).mkdir()
        write(folder / name)


def target_of(folder: Path) -> Path:
    """Return what is scanned: the only file, or the folder."""
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 else folder


def judge(path: Path, watch: Watch, *, seconds: int = _SECONDS) -> Outcome:
    """Scan a checkpoint, and return what it did."""
    size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
    out, err = io.StringIO(), io.StringIO()
    faults, status = [], None
    _reset_peak()
    before = _peak()
    previous = signal.signal(signal.SIGALRM, _raise_too_long)
    signal.alarm(seconds)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            watch.during() as events,
        ):
            warnings.simplefilter("error")
            status = run_command(["scan", str(path), "--json"])
    except TooLongError:
        faults.append(f"it ran for more than {seconds} s")
    except BaseException as error:  # noqa: BLE001 -- that is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        faults.append(f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    faults += events
    if Path(CANARY).exists():
        Path(CANARY).unlink()
        faults.append("it ran the code of the file")
    grown = _peak() - before
    if grown > 2 * size + _WORKSPACE:
        faults.append(f"it took {grown >> 20} MB for a file of {size / 1e6:.2f} MB")
    if not faults:
        faults += _faults_of_output(status, out.getvalue(), err.getvalue())
    return Outcome(status, tuple(faults))


def _faults_of_output(status: int | None, out: str, err: str) -> Iterator[str]:
    if status not in (0, 1, 2):
        yield f"exit status {status}"
    lines = [line for line in err.splitlines() if not _SKIPPED.fullmatch(line)]
    if len(lines) > 1 or (lines and not lines[0].startswith("esdmon scan: ")) or (status == 2 and not lines):
        yield f"standard error: {err[:200]!r}"
    if len(err) > 2 * _LONGEST_REASON:
        yield f"an error of {len(err)} characters: {err[:200]!r}"
    for layer in json.loads(out)["layers"] if out else ():
        is_explained = layer["status"] != "failed" or _DAMAGED.search(layer["reason"])
        if not is_explained or len(layer["reason"]) > _LONGEST_REASON:
            yield f"{layer['status']}: {layer['reason'][:200]}"


def _raise_too_long(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise TooLongError


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # another system than Linux: memory is not measured there
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> int:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        return int(found[1]) << 10 if found else 0
    return 0


def _work(options: argparse.Namespace) -> None:
    """Judge cases in this process, and print a line of JSON before and after each."""
    watch = Watch()
    templates = Path(options.templates)
    judge(target_of(templates / "pt"), watch)  # loads libraries before the first case
    for number in range(options.begin, options.count):
        with tempfile.TemporaryDirectory() as folder:
            name, done = make_case(number, options.seed, templates, Path(folder))
            print(json.dumps({"number": number, "format": name, "done": done}), flush=True)
            outcome = judge(target_of(Path(folder)), watch)
        print(json.dumps({"number": number, "status": outcome.status, "faults": outcome.faults}), flush=True)


def _lines(worker: "subprocess.Popen[str]") -> Iterator[str]:
    """Iterate over the lines of a worker, and kill it where none comes for long: no alarm interrupts a loop in C."""
    while worker.stdout is not None:
        timer = threading.Timer(4 * _SECONDS, worker.kill)
        timer.start()
        line = worker.stdout.readline()
        timer.cancel()
        if not line:
            return
        yield line


def _run_all(options: argparse.Namespace, templates: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Return counts by format and result, and a line on each case that failed; a worker that dies is one of them."""
    counts: Counter[tuple[str, str]] = Counter()
    failed: list[str] = []
    begin = 0
    while begin < options.count:
        command = [sys.executable, "-m", "tests.benchmarks.fuzz_checkpoints", "--work", "--templates", str(templates)]
        command += ["--begin", str(begin), "--count", str(options.count), "--seed", str(options.seed)]
        case: Mapping[str, Any] = {}
        is_finished = True
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            for line in _lines(worker):
                answer = json.loads(line)
                if "format" in answer:
                    case, is_finished = answer, False
                    continue
                is_finished = True
                begin = answer["number"] + 1
                counts[case["format"], str(answer["status"])] += 1
                if answer["faults"]:
                    failed.append(f"case {case['number']} ({case['format']}; {case['done']}): {answer['faults']}")
                    print(failed[-1], flush=True)
        if not is_finished:
            what = f"case {case['number']} ({case['format']}; {case['done']})"
            failed.append(f"{what}: the process died, or was killed since it hung")
            print(failed[-1], flush=True)
            counts[case["format"], "died"] += 1
            begin = case["number"] + 1
        elif worker.returncode:
            raise SystemExit(worker.returncode)
    return counts, failed


def main() -> int:
    """Run the cases; return 1 if one has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="number of cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case only, in this process")
    parser.add_argument("--keep", help="empty folder for the files of --case")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--templates", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        _work(options)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        templates = Path(folder)
        write_templates(templates)
        if options.case is not None:
            kept = Path(options.keep or tempfile.mkdtemp())
            print(*make_case(options.case, options.seed, templates, kept), kept, sep="\n")
            outcome = judge(target_of(kept), Watch())
            print(outcome)
            return int(bool(outcome.faults))
        counts, failed = _run_all(options, templates)
    print(f"{sum(counts.values())} cases, {len(failed)} failed")
    for name in WRITERS:
        results = {status: count for (which, status), count in sorted(counts.items()) if which == name}
        print(f"{name:12} " + ", ".join(f"status {status}: {count}" for status, count in results.items()))
    return int(bool(failed))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
