"""Determine how much memory this process may still take."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MEMORY = Path("/proc/meminfo")
_GROUPS = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")


class _Names(NamedTuple):
    """The names of the files of a control group, and of a row in the last file."""

    most: str
    taken: str
    statistics: str
    inactive: str
    """Row with the bytes of cached files, which may be dropped, including those of the groups below."""


_VERSION_2 = _Names("memory.max", "memory.current", "memory.stat", "inactive_file")
_VERSION_1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat", "total_inactive_file")


def available_bytes(*, memory: Path = _MEMORY, groups: Path = _GROUPS, mount: Path = _MOUNT) -> float:
    """Return the bytes that can be taken without swapping, within the limits of control groups; infinite if not known.

    Any group above that of the process may have a limit: the smallest remaining memory of all groups counts.

    Args:
        memory: the file in which the kernel reports the memory of the machine.
        groups: the file in which the kernel lists the control groups of this process.
        mount: the folder of the control groups.
    """
    left = (_left(folder, names) for folder, names in _folders(groups, mount))
    return min(_of_machine(memory), min(left, default=math.inf))


def _of_machine(memory: Path) -> float:
    try:
        rows = dict(line.split(":", 1) for line in memory.read_text(encoding="ascii").splitlines())
        return 1024 * int(rows["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):  # another system
        return math.inf


def _folders(groups: Path, mount: Path) -> Iterator[tuple[Path, _Names]]:
    """Yield the folders of this process's groups and of all above them, up to the mount."""
    try:
        rows = groups.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    for row in rows:
        number, _, rest = row.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, names = mount, _VERSION_2
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", _VERSION_1
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of the namespace
            parts = []
        yield from ((root.joinpath(*parts[:depth]), names) for depth in range(len(parts) + 1))


def _left(folder: Path, names: _Names) -> float:
    try:
        most, taken = (int((folder / name).read_text(encoding="ascii")) for name in (names.most, names.taken))
        rows = dict(line.split() for line in (folder / names.statistics).read_text(encoding="ascii").splitlines())
        return max(0, most - taken + int(rows.get(names.inactive, 0)))
    except (OSError, ValueError):  # no such group here, "max", or another system
        return math.inf
