"""Models that are spread over two ranks: skipped with a reason on both, and never read as if they were whole."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

import esdmon
from esdmon.sinks import MemorySink
from tests.ranks import start

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:multiprocessing")
WAYS = ("fsdp1", "fsdp1, flat", "fsdp2", "fsdp2, kept whole", "fsdp2, looked at between", "fsdp2, whole at first")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))


def sharded(way: str) -> nn.Module:
    model = network()
    if way.startswith("fsdp1"):
        return FullyShardedDataParallel(model, use_orig_params="flat" not in way, device_id=torch.device("cpu"))
    between = way in ("fsdp2, looked at between", "fsdp2, whole at first")
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, reshard_after_forward=not between)
    fully_shard(model)
    if way == "fsdp2, kept whole":
        model.set_reshard_after_backward(False)  # type: ignore[operator]
    return model


def train(way: str) -> dict[str, Any]:
    """Three steps of one way to shard; what was reported."""
    model = sharded(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sink = MemorySink()
    if way == "fsdp2, whole at first":
        with torch.no_grad():
            model(torch.ones(4, 64))
    with esdmon.watch(model, optimizer, every=1, budget=None, mode="sync", sinks=[sink], hook=False) as monitor:
        for _ in range(3):
            model(torch.ones(4, 64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            if way == "fsdp2, looked at between":
                with torch.no_grad():
                    model(torch.ones(4, 64))
            monitor.step()
        errors = len(monitor.errors)
    reports = [[(layer.name, layer.status, layer.reason) for layer in report] for report in sink.reports]
    return {"reports": reports, "errors": errors, "coverage": str(esdmon.analyze(model).coverage)}


def rank_of_a_job(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for way in WAYS:
        log = logging.FileHandler(f"{folder}/log-{rank}-{way}")
        logging.getLogger("esdmon").addHandler(log)
        results[way] = train(way)
        logging.getLogger("esdmon").removeHandler(log)
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


def test_shards_are_skipped_on_every_rank_with_one_line(tmp_path: Path) -> None:
    """FSDP1 in both forms, FSDP2 also while its modules show whole weights that are a step old."""
    start(rank_of_a_job, str(tmp_path), ranks=2)
    for rank in range(2):
        results = json.loads((tmp_path / f"result-{rank}.json").read_text())
        for way in WAYS:
            result, log = results[way], (tmp_path / f"log-{rank}-{way}").read_text()
            seen = {(name, status) for report in result["reports"] for name, status, _ in report}
            assert seen == ({("0", "skipped"), ("2", "skipped")} if rank == 0 else set()), way
            reasons = {reason for report in result["reports"] for _, _, reason in report}
            expected = "elements (FSDP1): not read yet" if "fsdp1" in way else "sharded over ranks: not read yet"
            assert all(reason.endswith(expected) for reason in reasons), way
            assert expected in result["coverage"], way
            assert result["errors"] == 0, way
            assert "holds none of the weights" not in log, way
            assert "other parameters than before" not in log, way
            assert log.count("2 of 2 matrices are skipped") == (2 if rank == 0 else 0), way  # watch() and analyze()
