"""Several threads on each rank of a job, on cores that are idle."""

import itertools
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import esdmon
from esdmon import watching
from esdmon.limits import Limits
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.runtime.ranks.distributed_job import DistributedJob
from esdmon.runtime.workers.processes import Processes
from esdmon.schedule.workers import Workers
from esdmon.sinks import MemorySink
from esdmon.spectrum import Measure, Spectrum
from tests.ranks import results_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
LAYERS, WIDTH, BUDGET = 8, 48, 0.9


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


def sharded() -> Any:
    return fully_shard(model())


class Meets:
    """A plugin whose measure waits for a second reading of the same rank."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self.most = 0

    @esdmon.hookimpl
    def esdmon_register_measures(self) -> list[Measure]:
        return [Measure("meets", self._meet)]

    def _meet(self, _spectrum: Spectrum) -> float:
        with self._changed:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.most > 1, 1)  # at the first due step there is one
            self._under_way -= 1
        return 1.0


def watched(make: Callable[[], nn.Module], *, meeting: bool = False, **options: Any) -> dict[str, Any]:
    """What the reports of rank 0 say; how fast the ranks read, and how much was put together at a time."""
    jobs: list[Any] = []
    own: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind, made in ((DistributedJob, jobs), (Assignments, own)):
            patch.setattr(kind, "__init__", noted(kind.__init__, made))
        sink, meets = MemorySink(), Meets()
        monitor = esdmon.watch(
            make(), every=4, budget=BUDGET, sinks=[sink], plugins=[meets] if meeting else [], alerts=None, **options
        )
    for _ in range(20):
        monitor.step()
        monitor.flush(20)
        distributed.barrier()
    monitor.close()
    layers = {layer.name: layer for report in sink.reports for layer in report.new}
    return {
        "values": {
            name: (layer.status, layer.measures.get("alpha"), layer.measures.get("lambda_max"))
            for name, layer in sorted(layers.items())
        },
        "seconds": sum(report.seconds for report in sink.reports),
        "paces": [jobs[0].capacities.pace(rank) for rank in (0, 1)] if jobs else [],
        "peak": own[0].memory_limit.peak_bytes,
        "most": meets.most,
        "dropped": monitor.dropped,
        "errors": [fault.message for fault in monitor.errors],
    }


def standing_still(patch: pytest.MonkeyPatch, workers: str | int = "auto") -> dict[str, Any]:
    """Read sharded weights in threads that begin nothing for 32 steps, as they do where steps are measured."""
    patch.setattr(watching, "Limits", partial(Limits, rank_seconds=0.01))
    at = [0]
    stands = property(lambda _self: 6 <= at[0] < 38, lambda _self, _value: None)
    patch.setattr(Workers, "is_paused", stands, raising=False)
    sink = MemorySink()
    monitor = esdmon.watch(sharded(), every=4, budget=BUDGET, mode="thread", sinks=[sink], alerts=None, workers=workers)
    for at[0] in range(1, 61):
        monitor.step()
        time.sleep(0.01)
        distributed.barrier()
    monitor.close()
    return {
        "read": [[report.step, [layer.status for layer in report.new]] for report in sink.reports],
        "dropped": monitor.dropped,
        "errors": [fault.message for fault in monitor.errors],
    }


def noted(init: Callable[..., None], made: list[Any]) -> Callable[..., None]:
    def noting(self: object, *args: Any, **options: Any) -> None:
        made.append(self)
        init(self, *args, **options)

    return noting


def rank_of_a_job(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    result = {}
    for way, make in (("whole", lambda: DistributedDataParallel(model())), ("sharded", sharded)):
        result[way, "in one"] = watched(make, mode="thread", workers=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workers, "count", 2)
            result[way, "in two"] = watched(make, mode="thread", meeting=True)
    with pytest.MonkeyPatch.context() as patch:
        ticks = itertools.count(0, 1000)
        patch.setattr(Processes, "clock", lambda _self: float(next(ticks)))
        patch.setattr(watching, "Limits", partial(Limits, rank_seconds=60))  # processes start slowly on a busy machine
        result["sharded", "in processes"] = watched(sharded, mode="process")
    with pytest.MonkeyPatch.context() as patch:
        result["sharded", "still"] = standing_still(patch)
        result["sharded", "still elsewhere"] = standing_still(patch, "auto" if rank else 0)
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps({" ".join(key): value for key, value in result.items()}))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of(rank_of_a_job, tmp_path_factory.mktemp("job"), ranks=2)


@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_ranks_read_in_several_threads_what_one_would(results: list[dict[str, Any]], way: str) -> None:
    """To the last bit; rank 0 knows how fast each rank reads."""
    leader, other = results
    two, one = leader[f"{way} in two"], leader[f"{way} in one"]
    assert len(one["values"]) == LAYERS
    assert two["values"] == one["values"]
    assert {status for status, _, _ in two["values"].values()} == {"ok"}
    assert [two["most"], other[f"{way} in two"]["most"]] == [2, 2]
    assert one["paces"] == [1, 1]
    assert two["paces"] == [2 / BUDGET, 2 / BUDGET]
    assert [two["dropped"], two["errors"], other[f"{way} in two"]["errors"]] == [0, [], []]


def test_two_weights_are_put_together_at_a_time(results: list[dict[str, Any]]) -> None:
    one = 4 * WIDTH * WIDTH
    assert [result["sharded in one"]["peak"] for result in results] == [one, one]
    assert max(result["sharded in two"]["peak"] for result in results) == 2 * one


def test_a_process_that_reads_a_sharded_weight_is_charged_what_it_uses(results: list[dict[str, Any]]) -> None:
    """By the clock that counts of waiting for a process what that has used: here one that jumps."""
    read = results[0]["sharded in processes"]
    assert {status for status, _, _ in read["values"].values()} == {"ok"}
    assert read["errors"] == []
    assert read["seconds"] > 1000 * LAYERS


@pytest.mark.parametrize("where", ["still", "still elsewhere"])
def test_no_rank_is_given_up_while_its_threads_stand_still(results: list[dict[str, Any]], where: str) -> None:
    """Nor are the copies that it waits for: due steps are read 30 steps later. Also where rank 0 has one thread."""
    leader, other = (result[f"sharded {where}"] for result in results)
    assert [leader["errors"], other["errors"], leader["dropped"]] == [[], [], 0]
    early = [statuses for step, statuses in leader["read"] if step < 38]
    assert len(early) >= 3
    assert {status for _, statuses in leader["read"] for status in statuses} == {"ok"}
