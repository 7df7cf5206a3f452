"""Tensor parallel of DeepSpeed (AutoTP)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from tests.ranks import results_in, torchrun
from tests.runtime.ranks import deepspeed_jobs
from tests.runtime.ranks.sharded_jobs import Training, check_read, check_undisturbed, train_twice

pytestmark = deepspeed_jobs.MARKS
STEPS = 5


def llama() -> Any:
    """One whose layers are split unevenly: three heads of k and v on two ranks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "intermediate_size": 90, "num_attention_heads": 6, "num_key_value_heads": 3}
    return LlamaForCausalLM(LlamaConfig(vocab_size=128, num_hidden_layers=1, **sizes))


def whole_state(engine: Any, whole: Any) -> dict[str, Tensor]:
    """Return all weights whole, by the collectives of torch."""
    state: dict[str, Tensor] = dict(whole.state_dict())
    for name, weight in engine.module.named_parameters():
        parts: list[Any] = [None, None]
        distributed.all_gather_object(parts, weight.detach().clone())
        shape = whole.get_parameter(name).shape
        side = next((side for side in range(weight.ndim) if weight.shape[side] != shape[side]), None)
        state[name] = parts[0] if side is None else torch.cat(parts, side)
    return state


def begin() -> Training:
    whole = llama()
    config = {"train_micro_batch_size_per_gpu": 2, "tensor_parallel": {"autotp_size": 2}}
    engine, _ = deepspeed_jobs.engine_of(llama(), **config)
    generator = torch.Generator().manual_seed(1)

    def step() -> float:
        ids = torch.randint(0, 128, (2, 16), generator=generator)
        loss = engine(ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        return float(loss)

    return Training(engine, step, lambda: whole_state(engine, whole))


def rank_of_a_job(folder: str) -> None:
    deepspeed_jobs.run(folder, lambda: {"autotp": train_twice(begin, STEPS).compared(llama())})


def test_readings_and_losses_are_those_of_the_whole_model(tmp_path: Path) -> None:
    """Of the gathered weights, and of the same training without a monitor; a step has no collective of the monitor."""
    torchrun(rank_of_a_job, str(tmp_path))
    results = results_in(tmp_path, 2)
    check_read(results[0])
    check_undisturbed(results)
    assert len(results[0]["autotp"]["names"]) == 7
