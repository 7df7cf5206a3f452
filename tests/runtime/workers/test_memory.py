"""How much memory may still be taken, of the machine and within the limits of control groups."""

import math
from pathlib import Path

import pytest

from esdmon.runtime.workers.memory import available_bytes

MOST = (1 << 63) - 4096
"""What version 1 says where there is no limit."""


def group(folder: Path, most: int | str, taken: int, inactive: int | None, *, version: int = 2) -> None:
    """Write the files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (most, taken), strict=True):
        (folder / name).write_text(f"{value}\n")
    known = "" if inactive is None else f"{'' if version == 2 else 'total_'}inactive_file {inactive}\n"
    (folder / "memory.stat").write_text(f"anon 12\n{known}")


def available(tmp_path: Path, groups: str | None, *, machine: int = 64) -> float:
    """Return the bytes on a machine with so many kB, where the groups of this process are these."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 100 kB\nMemAvailable:     {machine} kB\n")
    if groups is not None:
        (tmp_path / "groups").write_text(groups)
    return available_bytes(memory=tmp_path / "meminfo", groups=tmp_path / "groups", mount=tmp_path / "mount")


def test_a_machine_without_groups(tmp_path: Path) -> None:
    assert available(tmp_path, None) == 65536
    assert available(tmp_path, "0::/\n") == 65536
    assert available(tmp_path, "1:cpu:/\nnonsense\n\n") == 65536
    assert available_bytes(memory=tmp_path / "none", groups=tmp_path / "no", mount=tmp_path) == math.inf


@pytest.mark.parametrize(("version", "groups"), [(2, "0::{}\n"), (1, "5:cpu:/\n4:hugetlb,memory:{}\n0::/x\n")])
def test_the_least_that_a_group_or_one_above_it_leaves_counts(tmp_path: Path, version: int, groups: str) -> None:
    """Files that a group keeps in memory can be dropped."""
    root = tmp_path / "mount" / ("" if version == 2 else "memory")
    own = groups.format("/jobs/a:b")
    group(root / "jobs" / "a:b", 30000, 20000, 5000, version=version)
    assert available(tmp_path, own) == 15000
    group(root / "jobs", 25000, 20000, None, version=version)
    assert available(tmp_path, own) == 5000
    group(root, 3000, 4000, 0, version=version)
    assert available(tmp_path, own) == 0
    for folder in (root, root / "jobs"):
        group(folder, "max" if version == 2 else MOST, 20000, 0, version=version)
    assert available(tmp_path, own) == 15000
    assert available(tmp_path, own, machine=2) == 2048
    assert available(tmp_path, groups.format("/others")) == 65536


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/../../others", "/docker/0123 (deleted)"])
def test_a_path_that_a_namespace_does_not_show_is_that_of_the_mount(tmp_path: Path, path: str) -> None:
    group(tmp_path / "others", 1, 1, 0)
    for version, root, groups in ((2, "mount", f"0::{path}\n"), (1, "mount/memory", f"4:memory:{path}\n")):
        group(tmp_path / root, 30000, 20000, 5000, version=version)
        assert available(tmp_path, groups) == 15000
