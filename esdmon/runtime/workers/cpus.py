"""Count the processor cores that this process may use, and those that are idle."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of version 2: "200000 100000", or "max 100000"
_USED = Path("/sys/fs/cgroup/cpu.stat")
_TIMES = Path("/proc/stat")
_SECONDS = 1.0  # between two counts, in steps of 10 ms for each core: to read them takes a millisecond on large hosts
_LOCAL_SIZES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")


def cores(*, job: int = 1, quota: Path = _QUOTA) -> int:
    """Return the cores for this process: its affinity, a container's quota, and one share for each rank of the host.

    Args:
        job: ranks of the job; see `ranks_of_host`.
        quota: the file in which the kernel keeps the quota of the container.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(affinity, _allowed(quota)) // ranks_of_host(job))


@final
class IdleCores:
    """Count the unused cores of this process since the last count, halved: two may share one physical core.

    They are counted at most once a second, and only on Linux; on other systems no core counts as idle.

    Args:
        job: ranks of the job; see `ranks_of_host`.
        times: the file in which the kernel counts the time of each core.
        quota: the file with the quota of the container.
        used: the file in which the kernel counts what the container has used.
        clock: returns seconds.
    """

    def __init__(
        self,
        *,
        job: int = 1,
        times: Path = _TIMES,
        quota: Path = _QUOTA,
        used: Path = _USED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._times, self._quota, self._used, self._clock = times, quota, used, clock
        self._job = job
        self._last: _Counted | None = None
        self._found = self._n_counts = 0

    def is_known(self) -> bool:
        """Return whether idle cores have been counted, or cannot be on this system."""
        return self._last is None or self._n_counts > 1

    def __call__(self, *, own: float = 0) -> int:
        """Return the idle cores; 0 at the first call.

        Args:
            own: number of cores that this process's readings have used meanwhile, which count as idle.
        """
        if self._last is None or self._clock() - self._last.seconds >= _SECONDS:
            self._found = self._idle(own)
        return self._found

    def _idle(self, own: float) -> int:
        last, self._last = self._last, self._count()
        self._n_counts += 1
        if last is None or self._last is None or self._last.total <= last.total:
            return 0
        now, ranks = self._last, ranks_of_host(self._job)
        if now.throttled > last.throttled:  # all threads of a container are stopped when it exceeds its quota
            return 0
        share = (now.idle - last.idle) / (now.total - last.total)
        idle = share * now.cores
        if now.used is not None and last.used is not None and now.seconds > last.seconds:
            idle = min(idle, _allowed(self._quota) - (now.used - last.used) / (now.seconds - last.seconds))
        return max(0, int((idle / ranks + own) / 2))  # assuming that the other ranks read as much

    def _count(self) -> "_Counted | None":
        try:
            lines = self._times.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        cores = [line.split() for line in lines if line[:3] == "cpu" and line[3:4].isdigit()]
        ticks = [[int(each) for each in row[1:9]] for row in cores if int(row[0][3:]) in mine]
        idle = sum(row[3] + row[4] for row in ticks)  # idle time, and time of waiting for disks
        used, throttled = self._quota_used()
        return _Counted(sum(map(sum, ticks)), idle, len(ticks), self._clock(), used, throttled)

    def _quota_used(self) -> tuple[float | None, int]:
        """Return the core seconds that the container has used, and how often it was stopped."""
        try:
            rows = dict(line.split() for line in self._used.read_text(encoding="ascii").splitlines())
            return int(rows["usage_usec"]) / 1e6, int(rows.get("nr_throttled", 0))
        except (OSError, ValueError, KeyError):
            return None, 0


@dataclass(frozen=True, slots=True)
class _Counted:
    """The kernel's counters at one moment."""

    total: int
    idle: int
    cores: int
    seconds: float
    used: float | None
    throttled: int


def ranks_of_host(job: int = 1) -> int:
    """Return how many ranks share the cores of this host; all ranks of the job if the launcher does not set it.

    Args:
        job: number of ranks of the job.
    """
    names = ("LOCAL_WORLD_SIZE", *(_LOCAL_SIZES if job > 1 else ()))  # the first is that of torchrun
    known = (int(value) for name in names if (value := os.environ.get(name, "")).isdecimal())
    return max(1, next(known, job))


def _allowed(quota: Path) -> int:
    try:
        used, period = quota.read_text(encoding="ascii").split()
        return math.ceil(int(used) / int(period))
    except (OSError, ValueError):  # another system, or the value "max"
        return 1 << 30
