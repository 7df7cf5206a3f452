"""What reading sharded weights costs the ranks: no collective, bounded memory, nothing that grows."""

import gc
import json
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import esdmon
from esdmon.runtime.ranks.assignments import Assignments
from esdmon.sinks import MemorySink
from tests.ranks import results_of
from tests.runtime.ranks.collectives import no_collective

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
WIDTH, LAYERS, STEPS = 64, 3, 30


def files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def rank_of_a_job(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink, counts, seen = MemorySink(), 0, []
    made: list[Assignments] = []
    init = Assignments.__init__

    def noted(own: Assignments, *args: Any, **options: Any) -> None:
        made.append(own)
        init(own, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Assignments, "__init__", noted)
        monitor = esdmon.watch(model, every=1, budget=None, sinks=[sink])
    for step in range(1, STEPS + 1):
        model(torch.randn(2, WIDTH)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        before = torch.get_rng_state()
        with no_collective() as counted:
            monitor.step()
        counts += counted.get_total_counts()
        assert torch.equal(before, torch.get_rng_state())
        distributed.barrier()
        if step in (STEPS // 3, STEPS):
            monitor.flush(20)
            distributed.barrier()
            exchange = made[0].announcer.exchange
            if exchange is None:
                raise AssertionError("this rank holds fragments")
            seen.append([threading.active_count(), files(), exchange.n_kept])
    futures = sum(isinstance(each, Future) for each in gc.get_objects())
    monitor.close()
    own: Any = made[0]
    result = {
        "collectives": counts,
        "seen": seen,
        "futures": futures,
        "kept": own.announcer.exchange.peak_bytes,
        "assembled": own.memory_limit.peak_bytes,
        "left": own.memory_limit.held_bytes,
        "read": sum(layer.status == "ok" for report in sink.reports for layer in report.new),
        "errors": [fault.message for fault in monitor.errors],
    }
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return results_of(rank_of_a_job, tmp_path_factory.mktemp("job"), ranks=2)


def test_no_collective_in_a_step(results: list[dict[str, Any]]) -> None:
    """Counted, and patched to raise; nor is a random number drawn."""
    assert [(result["collectives"], result["errors"]) for result in results] == [(0, []), (0, [])]
    assert results[0]["read"] > LAYERS * STEPS // 4


def test_memory_is_that_of_one_matrix(results: list[dict[str, Any]]) -> None:
    """Put together: one at a time. Copies: those of the fragments of the due steps that are under way."""
    one = 4 * WIDTH * WIDTH
    for result in results:
        assert result["assembled"] == one
        assert result["left"] == 0
        assert result["kept"] <= 5 * LAYERS * one // 2


def test_nothing_grows(results: list[dict[str, Any]]) -> None:
    """Threads, files with sockets, copies: as many at the end as after a third. Readings: those of the last steps."""
    for result in results:
        first, last = result["seen"]
        assert last == first
        assert result["futures"] <= 2 * LAYERS
