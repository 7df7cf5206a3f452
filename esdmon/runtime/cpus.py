"""Count the processor cores that this process may use."""

import math
import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of version 2: "200000 100000", or "max 100000"


def cores(*, quota: Path = _QUOTA) -> int:
    """Return the cores for this process: its affinity, a container's quota, and one share for each rank of the host.

    Args:
        quota: the file in which the kernel keeps the quota of the container.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # set by torchrun
    return max(1, min(affinity, _allowed(quota)) // (int(ranks) if ranks.isdecimal() and int(ranks) else 1))


def _allowed(quota: Path) -> int:
    try:
        used, period = quota.read_text(encoding="ascii").split()
        return math.ceil(int(used) / int(period))
    except (OSError, ValueError):  # another system, or "max"
        return 1 << 30
