"""Models that transformers itself splits over the ranks of a CPU: tensor and expert parallel, FSDP2, and several."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from tests.ranks import results_in, torchrun
from tests.runtime.ranks.sharded_jobs import Training, check_read, check_undisturbed, full, train_twice

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


def begin(way: str, folder: Path) -> Training:
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    kind, sizes = WAYS[way]
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder / kind, dtype=torch.float32, distributed_config=DistributedConfig(**sizes)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)

    def step() -> float:
        ids = torch.randint(0, 128, (2, 16), generator=generator)
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(full(loss))

    def gather() -> dict[str, Tensor]:
        return {name: full(weight).clone() for name, weight in model.named_parameters()}

    return Training(model, step, gather)


def train(way: str, folder: Path) -> dict[str, Any]:
    """What was read, and how it differs from readings of the whole model."""
    from transformers import AutoModelForCausalLM

    trained = train_twice(partial(begin, way, folder), STEPS)
    return trained.compared(AutoModelForCausalLM.from_pretrained(folder / WAYS[way][0], dtype=torch.float32))


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
    (folder / f"result-{rank}.json").write_text(json.dumps({way: train(way, folder) for way in ways}))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_readings_and_losses_are_those_of_the_whole_model(size: int, tmp_path: Path) -> None:
    """Of the gathered weights, and of the same training without a monitor; a step has no collective of the monitor."""
    torchrun(rank_of_a_job, tmp_path, tuple(WAYS)[-1:] if size == 4 else tuple(WAYS)[:-1], ranks=size)
    log = (tmp_path / "log-0").read_text()
    assert "WARNING:esdmon" not in log, log
    results = results_in(tmp_path, size)
    check_read(results[0])
    check_undisturbed(results)
