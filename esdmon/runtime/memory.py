"""Look how much memory this process may still take."""

import math
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")  # of version 2
_MEMORY = Path("/proc/meminfo")


def available_bytes(*, memory: Path = _MEMORY, group: Path = _GROUP) -> float:
    """Return the bytes that can be taken without swapping, within the limit of the container; infinite if not known.

    Args:
        memory: the file in which the kernel keeps what the machine has.
        group: the folder in which it keeps what the container may take and has taken.
    """
    return min(_of_machine(memory), _of_container(group))


def _of_machine(memory: Path) -> float:
    try:
        rows = dict(line.split(":", 1) for line in memory.read_text(encoding="ascii").splitlines())
        return 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):  # another system
        return math.inf


def _of_container(group: Path) -> float:
    try:
        most, taken = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        rows = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return max(0, most - taken + int(rows["inactive_file"]))  # files that are in memory, and may be dropped
    except (OSError, ValueError, KeyError):  # no container, or "max"
        return math.inf
