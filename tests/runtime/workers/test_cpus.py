"""The cores that a process may use are fewer than those of the machine in a container, and on a shared host."""

from pathlib import Path
from typing import Any

import pytest

from esdmon.runtime.workers.cpus import IdleCores, cores, ranks_of_host
from tests.clocks import FakeClock


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ((64, "max 100000", None), 64),
        ((64, "200000 100000", None), 2),
        ((64, "150000 100000", None), 2),
        ((64, None, "8"), 8),
        ((4, "rubbish", "4"), 1),
        ((2, "max 100000", "8"), 1),
        ((2, "max 100000", "x"), 2),
    ],
)
def test_the_least_of_affinity_and_quota_is_shared_by_the_ranks(
    machine: tuple[int, str | None, str | None], expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And one core there always is."""
    affinity, quota, ranks = machine
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(affinity)), raising=False)
    if ranks is None:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(quota)
    assert cores(quota=file) == expected


class Kernel:
    """The files of a kernel: cores with seconds of use and idleness, and a container."""

    def __init__(self, folder: Path, cores: int) -> None:
        self.folder = folder
        self.busy, self.idle = [0] * cores, [0] * cores
        self.used, self.throttled = 0.0, 0
        self.quota = "max 100000"

    def files(self) -> dict[str, Any]:
        return {name: self.folder / name for name in ("times", "quota", "used")}

    def passes(self, seconds: int, *, busy: int) -> None:
        """Let time pass, with so many cores used."""
        for core in range(len(self.busy)):
            (self.busy if core < busy else self.idle)[core] += 100 * seconds
        self.used += busy * seconds
        rows = (
            f"cpu{n} {busy} 0 0 {idle} 0 0 0 0 0 0"
            for n, (busy, idle) in enumerate(zip(self.busy, self.idle, strict=True))
        )
        paths = self.files()
        paths["times"].write_text("\n".join(["cpu 1 1 1 1 1 1 1 1 1 1", *rows, "intr 5"]))
        paths["quota"].write_text(self.quota)
        paths["used"].write_text(f"usage_usec {int(1e6 * self.used)}\nnr_throttled {self.throttled}\n")


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    kernel = Kernel(tmp_path, 16)
    kernel.passes(1, busy=0)
    return kernel


def idle_in(kernel: Kernel, seconds: int, *, busy: int, own: float = 0) -> int:
    """Return the idle cores of a time in which so many were used."""
    clock = FakeClock()
    idle = IdleCores(**kernel.files(), clock=clock.perf_counter)
    assert idle() == 0, "nothing is known at first"
    clock.passes(seconds)
    kernel.passes(seconds, busy=busy)
    return idle(own=own)


def test_half_of_the_idle_cores(kernel: Kernel) -> None:
    assert idle_in(kernel, 10, busy=4) == 6
    assert idle_in(kernel, 10, busy=16) == 0


def test_cores_of_own_readings_count_as_idle(kernel: Kernel) -> None:
    assert idle_in(kernel, 10, busy=8, own=4) == 6


def test_only_cores_of_this_process_count(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 14, 15}, raising=False)
    assert idle_in(kernel, 10, busy=4) == 1


def test_ranks_of_a_host_share(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counts its own readings as idle, and those of the others as if they were as many."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert idle_in(kernel, 10, busy=0) == 2
    assert idle_in(kernel, 10, busy=8, own=2) == 2


def test_the_launcher_says_how_many_ranks_a_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not, all of the job may share this one."""
    for name in ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert [ranks_of_host(), ranks_of_host(16)] == [1, 16]
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    assert [ranks_of_host(), ranks_of_host(16)] == [1, 8]  # of an allocation in which one process was started
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [ranks_of_host(), ranks_of_host(16)] == [4, 4]


def test_the_quota_of_a_container_is_not_passed(kernel: Kernel) -> None:
    """Beyond it the kernel stops the training's threads as well."""
    kernel.quota = "600000 100000"
    assert idle_in(kernel, 10, busy=4) == 1
    clock = FakeClock()
    idle = IdleCores(**kernel.files(), clock=clock.perf_counter)
    idle()
    clock.passes(10)
    kernel.throttled = 3
    kernel.passes(10, busy=0)
    assert idle() == 0


def test_cores_are_counted_once_a_second_at_most(kernel: Kernel) -> None:
    """A training of short steps asks a hundred times as often."""
    clock = FakeClock()
    idle = IdleCores(**kernel.files(), clock=clock.perf_counter)
    idle()
    clock.passes(1)
    kernel.passes(1, busy=4)
    assert idle() == 6
    clock.passes(0.5)
    kernel.passes(1, busy=16)
    assert idle() == 6
    clock.passes(0.5)
    assert idle() == 0


def test_without_the_files_of_linux_no_core_is_idle(tmp_path: Path) -> None:
    idle = IdleCores(times=tmp_path / "absent", quota=tmp_path / "absent", used=tmp_path / "absent")
    assert (idle(), idle()) == (0, 0)


def test_idle_cores_are_known_after_two_counts(kernel: Kernel) -> None:
    """And where they cannot be counted."""
    clock = FakeClock()
    idle = IdleCores(**kernel.files(), clock=clock.perf_counter)
    idle()
    assert not idle.is_known()
    kernel.passes(2, busy=1)
    clock.passes(2)
    idle()
    assert idle.is_known()
    missing = IdleCores(times=kernel.folder / "none", clock=clock.perf_counter)
    missing()
    assert missing.is_known()
