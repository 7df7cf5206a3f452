"""A rank that fails costs the others its own matrices at most: no step that waits, no end of the training."""

import json
import math
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import PRELOADED
from tests.runtime.ranks.failing_ranks import ABSENT, AFTER, BETWEEN, CASES, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")]
SHARDED = {"w0", "w1", "w2", "w3"}
_AT_ONCE = 5
_WAITS = 0.5  # seconds that a step may wait for the monitor: a bound on blocking, far above what a step takes


def start(case: str, folder: Path) -> list[Any]:
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [context.Process(target=run, args=(rank, case, str(folder), port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    return ranks


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, Any]]:
    """The results of each rank that lived, by case."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    results: dict[str, dict[int, Any]] = {}
    for first in range(0, len(CASES), _AT_ONCE):
        folders = {case: tmp_path_factory.mktemp("job") for case in CASES[first : first + _AT_ONCE]}
        started = {case: start(case, folder) for case, folder in folders.items()}
        for case, ranks in started.items():
            results[case] = {}
            for rank, process in enumerate(ranks):
                process.join(60)
                path = folders[case] / f"result-{rank}.json"
                killed = case.startswith(f"rank {rank} is killed")
                assert process.exitcode == (-9 if killed else 0), (case, rank)
                if not killed:
                    results[case][rank] = json.loads(path.read_text())
    return results


def ok(result: Any, *, after: float = -math.inf) -> set[str]:
    """The matrices that were read so many steps after it happened, or later."""
    event = result["event"]
    return {name for step, name, status, _ in result["read"] if status == "ok" and step >= event + after}


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits(case: str, jobs: dict[str, dict[int, Any]]) -> None:
    """On any rank that lives; each has ended by itself."""
    for rank, result in jobs[case].items():
        assert result["longest"] < _WAITS, (rank, result)


@pytest.mark.parametrize("case", [case for case in CASES if case != "rank 0 does not watch"])
def test_all_are_read_before(case: str, jobs: dict[str, dict[int, Any]]) -> None:
    """All matrices until it happens, where both ranks watch; the one of rank 0 alone in any case."""
    if 0 in jobs[case]:
        expected = {"own"} if case in ABSENT else SHARDED | {"own"}
        assert {name for step, name, status, _ in jobs[case][0]["read"] if status == "ok"} >= expected


def test_a_rank_that_dies(jobs: dict[str, dict[int, Any]]) -> None:
    """What rank 0 holds alone is read to the end; the rest has a reason."""
    result = jobs["rank 1 is killed"][0]
    assert ok(result, after=2) == {"own"}
    assert "own" in ok(result, after=AFTER - 2)
    failed = {reason for _, name, status, reason in result["read"] if name in SHARDED and status != "ok"}
    assert any("rank 1" in reason for reason in failed), failed
    assert any("rank 1" in who for who in result["errors"])


def test_a_rank_that_dies_before_an_extra_reading(jobs: dict[str, dict[int, Any]]) -> None:
    """What rank 0 holds alone is read at once; of the others the readings before stay, and none is failed."""
    result = jobs[BETWEEN][0]
    event = result["event"]
    assert {name for step, name, *_ in result["read"] if event < step and step % 10} == {"own"}
    assert "reading between scheduled steps on all ranks" in result["errors"], result["errors"]


def test_a_rank_that_raises_on_one_weight(jobs: dict[str, dict[int, Any]]) -> None:
    """That one fails, with the error in its place; the others are read."""
    result = jobs["rank 1 raises on one weight"][0]
    assert ok(result, after=10) >= {"w0", "w2", "w3", "own"}
    reasons = {reason for step, name, status, reason in result["read"] if name == "w1" and status == "failed"}
    assert any("this one cannot be copied" in reason for reason in reasons), reasons


def test_a_rank_that_is_late(jobs: dict[str, dict[int, Any]]) -> None:
    """Steps that it misses are lost; later all are read again."""
    result = jobs["rank 1 sleeps"][0]
    assert {reason for _, _, status, reason in result["read"] if status == "failed"}
    assert SHARDED & ok(result, after=10)


def test_a_rank_that_is_silent(jobs: dict[str, dict[int, Any]]) -> None:
    """Its fragments time out; what needs none of them is read."""
    result = jobs["rank 1 is silent"][0]
    assert "own" in ok(result, after=4)
    reasons = {reason for _, _, status, reason in result["read"] if status == "failed"}
    assert "rank 1 did not answer in time" in reasons, reasons


def test_a_rank_that_does_not_watch(jobs: dict[str, dict[int, Any]]) -> None:
    """Its part of each matrix is missing, and the reason says how much."""
    result = jobs["rank 1 does not watch"][0]
    reasons = {reason for _, name, status, reason in result["read"] if name in SHARDED and status == "skipped"}
    assert reasons == {"630 of 1,230 elements are held by ranks that watch"}
    assert jobs["rank 0 does not watch"][1]["read"] == []
    assert jobs["rank 0 does not watch"][1]["errors"] == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_closes_first(rank: int, jobs: dict[str, dict[int, Any]]) -> None:
    """The other goes on, with what it holds."""
    result = jobs[f"rank {rank} closes first"][1 - rank]
    if rank:
        assert "own" in ok(result, after=AFTER - 2)
        assert SHARDED & ok(result, after=4) == set()
    assert "monitor" not in result["errors"]
