"""ZeRO-3 of DeepSpeed."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import esdmon
from esdmon.errors import InputError
from esdmon.trainers.optimizers import readable
from tests.ranks import results_in, torchrun
from tests.runtime.ranks import deepspeed_jobs
from tests.runtime.ranks.sharded_jobs import Training, check_read, check_undisturbed, train_twice

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


def begin(way: str) -> Training:
    engine, optimizer = engine_of(way, network())
    check_refused(engine, optimizer)
    generator = torch.Generator().manual_seed(distributed.get_rank())
    dtype = next(engine.module.parameters()).dtype

    def step() -> list[float]:
        losses = []
        for _ in range(2):  # batches
            loss = engine(torch.randn(4, 64, generator=generator).to(dtype)).float().square().mean()
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
        assert engine.was_step_applied()
        return losses

    return Training(engine, step, lambda: gathered(engine))


def check_refused(engine: Any, optimizer: Any) -> None:
    assert readable(optimizer) is None  # what it holds is not the model's
    for model, given in ((engine, optimizer), (engine, optimizer.optimizer), (engine.module, optimizer.optimizer)):
        with pytest.raises(InputError, match="Leave it out"):
            esdmon.watch(model, given, sinks=None)


def train(way: str) -> dict[str, Any]:
    """What was read, and how it differs from readings of the whole model."""
    dtype = torch.bfloat16 if "bf16" in WAYS[way] else torch.float32
    return train_twice(partial(begin, way), STEPS).compared(network().to(dtype))


def rank_of_a_job(folder: str) -> None:
    deepspeed_jobs.run(folder, lambda: {way: train(way) for way in WAYS})


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
    ranks = [{way: rank[way]} for rank in results]
    check_read(ranks[0])
    check_undisturbed(ranks)
    result = ranks[0][way]
    assert set(result["names"]) == {"0", "2", "4"}
    assert len(result["read"]) >= 3 * (STEPS - 2)
