"""Models that transformers itself splits over the ranks of a CPU: tensor and expert parallel, FSDP2, and several."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import esdmon
from esdmon.sinks import MemorySink
from tests.ranks import results_in, torchrun
from tests.runtime.ranks.collectives import monitored_step
from tests.runtime.ranks.sharded_jobs import check_read, compared, full

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
STEPS = 5
WAYS: dict[str, tuple[str, dict[str, int]]] = {
    "tensor parallel": ("Mixtral", {"tp_size": 2}),  # each half of the rows of `gate_up_proj`
    "expert parallel": ("Qwen3Moe", {"fsdp_size": 2, "ep_size": 2}),
    "tensor parallel and FSDP": ("Mixtral", {"tp_size": 2, "fsdp_size": 2}),
}
"""The architecture, and the `DistributedConfig`; the last is of four ranks."""


def config_of(kind: str) -> Any:
    import transformers

    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 48}
    config: Any = getattr(transformers, f"{kind}Config")(**sizes, **heads, **experts, head_dim=16)
    return config


def train(way: str, folder: Path, *, watched: bool) -> dict[str, Any]:
    """A few steps; what was read, and how it differs from readings of the whole model."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    kind, sizes = WAYS[way]
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder / kind, dtype=torch.float32, distributed_config=DistributedConfig(**sizes)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sink, losses, counts = MemorySink(), list[float](), 0
    states: dict[int, dict[str, Tensor]] = {}
    monitor = esdmon.watch(model, every=1, budget=None, sinks=[sink]) if watched else None
    for step in range(1, STEPS + 1):
        ids = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(step))
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(full(loss)))
        if monitor is not None:
            n_collectives, states[step] = monitored_step(monitor, lambda: whole_weights(model))
            counts += n_collectives
    if monitor is None:
        return {"losses": losses}
    monitor.close(timeout=20)
    whole = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float32)
    return compared(monitor, sink, whole, states) | {"losses": losses, "collectives": counts}


def whole_weights(model: Any) -> dict[str, Tensor]:
    return {name: full(weight).clone() for name, weight in model.named_parameters()}


def rank_of_a_job(folder: Path, ways: tuple[str, ...]) -> None:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    logging.basicConfig(filename=folder / f"log-{rank}")
    for kind in {WAYS[way][0] for way in ways} if rank == 0 else ():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config_of(kind)).save_pretrained(folder / kind)
    distributed.barrier()
    results = {
        way: train(way, folder, watched=True) | {"plain": train(way, folder, watched=False)["losses"]} for way in ways
    }
    (folder / f"result-{rank}.json").write_text(json.dumps(results))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_readings_and_losses_are_those_of_the_whole_model(size: int, tmp_path: Path) -> None:
    """Of the gathered weights, and of the same training without a monitor; a step has no collective of the monitor."""
    torchrun(rank_of_a_job, tmp_path, tuple(WAYS)[-1:] if size == 4 else tuple(WAYS)[:-1], ranks=size)
    log = (tmp_path / "log-0").read_text()
    assert "WARNING:esdmon" not in log, log
    first, *others = results_in(tmp_path, size)
    check_read(first)
    for results in (first, *others):
        for way, result in results.items():
            assert result["losses"] == result["plain"], way
            assert result["collectives"] == 0, way
            assert results is first or result["read"] == [], way
