"""A rank that closes its monitor before a due step that the others take: by Ctrl-C, or since it has fewer batches."""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import distributed

import esdmon
from esdmon.sinks import MemorySink
from tests.ranks import results_of
from tests.runtime.ranks.sharded_ways import made

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
STEPS = 6


def rank_of_a_job(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.set_num_threads(1)
    found = {way: train(way, STEPS - rank) for way in ("ddp", "fsdp2")}
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def train(way: str, steps: int) -> list[object]:
    """Return the monitor's errors, and of each layer of the last report its status and the step of its reading."""
    whole, model = made(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    sink = MemorySink()
    monitor = esdmon.watch(model, optimizer, every=2, budget=None, sinks=sink)
    for step in range(1, STEPS + 1):
        model(whole.batch(generator)).square().mean().backward()
        if step <= steps:
            optimizer.step()
        optimizer.zero_grad()
    monitor.close()
    last = sink.reports[-1].layers if sink.reports else ()
    return [[fault.message for fault in monitor.errors], sorted({(layer.status, layer.step) for layer in last})]


def test_a_rank_that_closes_a_step_earlier_is_not_waited_for(tmp_path: Path) -> None:
    """Else rank 0 waits for the answer until its timeout, and counts that as a failure of the rank.

    Weights of which the closed rank held a part keep the reading before.
    """
    ahead, _ = results_of(rank_of_a_job, tmp_path, ranks=2)
    assert ahead == {"ddp": [[], [["ok", STEPS - 2], ["ok", STEPS]]], "fsdp2": [[], [["ok", STEPS - 2]]]}
    assert (tmp_path / "log-0").read_text() == ""
