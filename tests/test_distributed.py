"""A job of two ranks on one machine, by gloo: the weights are the same on both, so one reads and writes."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import esdmon


def train(rank: int, folder: str) -> None:
    """One rank: a few steps of DDP, watched by the same line everywhere."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.manual_seed(rank)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 32)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with esdmon.watch(model, optimizer, every=2, budget=None, sinks=f"jsonl:{folder}/rank-{rank}.jsonl") as monitor:
        for _ in range(4):
            model(torch.randn(4, 32)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert monitor.steps == 4
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
def test_one_rank_writes_and_nothing_hangs(tmp_path: Path) -> None:
    """Rank 0 has the readings under the names of the model inside DDP; rank 1 has no file and no complaint."""
    spawn(train, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    lines = (tmp_path / "rank-0.jsonl").read_text().splitlines()
    assert [line.count('"name": "0"') for line in lines] == [1, 0, 1, 0]
    assert not (tmp_path / "rank-1.jsonl").exists()
    assert (tmp_path / "log-1").read_text() == ""
