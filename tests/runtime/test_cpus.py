"""The cores that a process may use are fewer than those of the machine in a container, and on a shared host."""

from pathlib import Path

import pytest

from esdmon.runtime.cpus import cores


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
