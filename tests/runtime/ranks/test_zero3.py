"""ZeRO-3 of DeepSpeed."""

from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import esdmon
from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from esdmon.trainers.optimizers import readable
from tests.ranks import results_in, torchrun
from tests.runtime.ranks import deepspeed_jobs
from tests.runtime.ranks.collectives import monitored_step
from tests.runtime.ranks.sharded_jobs import difference, reading_of

pytestmark = deepspeed_jobs.MARKS
STEPS = 6
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": {"enabled": True}},
    "sub-groups": {"sub_group_size": 4000},
    "persistent": {"stage3_param_persistence_threshold": 4000},
    "optimizer offloaded": {"offload_optimizer": {"device": "cpu"}},
    "all offloaded": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu", "pin_memory": False}},
    "hierarchical": {"zero_hpz_partition_size": 2},
}


def network() -> nn.Sequential:
    """Odd sizes: two of three weights have a number of elements that two ranks cannot share evenly."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 97), nn.Tanh(), nn.Linear(97, 61, bias=False), nn.Tanh(), nn.Linear(61, 53))


def engine_of(way: str, model: nn.Module) -> tuple[Any, Any]:
    given = dict(WAYS[way])
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    if "bf16" in given:
        config["bf16"] = given.pop("bf16")
    config["zero_optimization"] |= given  # type: ignore[operator]
    return deepspeed_jobs.engine_of(model, **config)


def gathered(engine: Any) -> dict[str, Tensor]:
    """All weights, whole, by DeepSpeed's own collectives."""
    import deepspeed  # type: ignore[import-not-found,unused-ignore]

    whole = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            whole[name] = parameter.detach().clone()
    return whole


def train(way: str, *, watched: bool) -> dict[str, Any]:
    """A few steps of two batches each; what was read, and how it differs from readings of the whole model."""
    engine, optimizer = engine_of(way, network())
    rank, sink, counts = distributed.get_rank(), MemorySink(), 0
    losses: list[float] = []
    states: dict[int, dict[str, Tensor]] = {}
    monitor = esdmon.watch(engine, every=1, budget=None, sinks=[sink]) if watched else None
    dtype = next(engine.module.parameters()).dtype
    for batch in range(2 * STEPS):
        inputs = torch.randn(4, 64, generator=torch.Generator().manual_seed(2 * batch + rank)).to(dtype)
        loss = engine(inputs).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if monitor is not None and engine.was_step_applied():
            n_collectives, states[monitor.steps] = monitored_step(monitor, lambda: gathered(engine))
            counts += n_collectives
    if monitor is None:
        return {"losses": losses}
    monitor.close()
    assert readable(optimizer) is None  # what it holds is not the model's
    for model, given in ((engine, optimizer), (engine, optimizer.optimizer), (engine.module, optimizer.optimizer)):
        with pytest.raises(InputError, match="Leave it out"):
            esdmon.watch(model, given, sinks=None)
    read = [layer for report in sink.reports for layer in report.new]
    whole = {step: reading_of(network().to(dtype), states[step]) for step in {layer.step for layer in read}}
    return {
        "losses": losses,
        "steps": monitor.steps,
        "collectives": counts,
        "errors": [fault.message for fault in monitor.errors],
        "read": [[layer.name, layer.status, difference(layer, whole[layer.step])] for layer in read],
        "coverage": [
            str(report.coverage).splitlines()[0] for report in (*sink.reports[-1:], *list(whole.values())[:1])
        ],
    }


def rank_of_a_job(folder: str) -> None:
    deepspeed_jobs.run(
        folder,
        lambda: {way: train(way, watched=True) | {"plain": train(way, watched=False)["losses"]} for way in WAYS},
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("job")
    torchrun(rank_of_a_job, str(folder))
    log = (folder / "log-0").read_text()
    assert "WARNING:esdmon" not in log, log
    return results_in(folder, 2)


@pytest.mark.parametrize("way", WAYS)
def test_zero3(way: str, results: list[dict[str, Any]]) -> None:
    """Readings are those of the gathered model, losses those without a monitor, to the last bit; no collective."""
    first, second = (rank[way] for rank in results)
    for rank in (first, second):
        assert rank["losses"] == rank["plain"]
        assert (rank["steps"], rank["collectives"], rank["errors"]) == (STEPS, 0, [])
    assert len(first["read"]) >= 3 * (STEPS - 2)
    assert {name for name, *_ in first["read"]} == {"0", "2", "4"}
    assert all(status == "ok" and not differing for _, status, differing in first["read"]), first["read"]
    assert len(set(first["coverage"])) == 1, first["coverage"]
    assert second["read"] == []
