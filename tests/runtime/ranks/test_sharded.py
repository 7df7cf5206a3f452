"""Models that are spread over ranks: read as the whole model would be, and without a trace in the training."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from tests.ranks import results_in, start
from tests.runtime.ranks.sharded_jobs import check_read, train
from tests.runtime.ranks.sharded_ways import OF_FOUR, OF_TWO

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")]


def rank_of_a_job(rank: int, folder: str, ways: tuple[str, ...], size: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.set_num_threads(1)
    results = {}
    for way in ways:
        results[way] = train(way, watched=True) | {"plain": train(way, watched=False)["losses"]}
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """The results of each rank by way, and the log of rank 0."""
    folder, size = tmp_path_factory.mktemp("job"), request.param
    start(rank_of_a_job, str(folder), OF_TWO if size == 2 else OF_FOUR, size, ranks=size)
    results = results_in(folder, size)
    return results, (folder / "log-0").read_text()


def test_readings_are_those_of_the_whole_model(job: tuple[list[dict[str, Any]], str]) -> None:
    """The weights that the optimizer has just stepped, counted in elements of the whole parameters."""
    check_read(job[0][0])
    for way, result in job[0][0].items():
        assert all(0 <= moved < 1 for moved in result["moved"]), (way, result["moved"])
        assert sum(moved > 0 for moved in result["moved"]) >= 2, (way, result["moved"])


def test_losses_are_the_same_to_the_last_bit(job: tuple[list[dict[str, Any]], str]) -> None:
    """On each rank, with a monitor and without."""
    for results in job[0]:
        for way, result in results.items():
            assert result["losses"] == result["plain"], way


def test_each_copy_is_fetched(job: tuple[list[dict[str, Any]], str]) -> None:
    """Also where other ranks hold the same fragment: those that read it themselves need no copy."""
    for results in job[0]:
        assert {way: sum(result["left"]) for way, result in results.items()} == dict.fromkeys(results, 0)


def test_only_rank_0_reports(job: tuple[list[dict[str, Any]], str]) -> None:
    """And nothing is logged."""
    assert all(result["read"] == [] for results in job[0][1:] for result in results.values())
    assert "WARNING:esdmon" not in job[1], job[1]
