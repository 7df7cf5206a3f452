"""Tensor parallel of DeepSpeed on two ranks of a CPU, where `pip install deepspeed==0.19.8` has been run."""

import json
import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

import esdmon
from esdmon.sinks import MemorySink
from tests.ranks import results_in, torchrun
from tests.runtime.ranks.sharded_jobs import check_read, compared
from tests.runtime.ranks.test_sharded_costs import no_collective

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
    pytest.mark.filterwarnings("ignore"),
]
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


def train(*, watched: bool) -> dict[str, Any]:
    """A few steps; what was read, and how it differs from readings of the whole model."""
    import deepspeed  # type: ignore[import-not-found,unused-ignore]

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]  # a build of minutes
    model, whole = llama(), llama()
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "tensor_parallel": {"autotp_size": 2},
    }
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    engine, *_ = deepspeed.initialize(model=model, optimizer=inner, config=config, dist_init_required=False)
    sink, losses, counts = MemorySink(), list[float](), 0
    states: dict[int, dict[str, Tensor]] = {}
    monitor = esdmon.watch(engine, every=1, budget=None, sinks=[sink]) if watched else None
    for step in range(1, STEPS + 1):
        ids = torch.randint(0, 128, (2, 16), generator=torch.Generator().manual_seed(step))
        loss = engine(ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if monitor is not None:
            with no_collective() as counted:
                monitor.step()
            counts += counted.get_total_counts()
            states[step] = whole_state(engine, whole)
            monitor.flush(10)
            distributed.barrier()
    if monitor is None:
        return {"losses": losses}
    monitor.close(timeout=20)
    return compared(monitor, sink, whole, states) | {"losses": losses, "collectives": counts}


def rank_of_a_job(folder: str) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    logging.basicConfig(filename=f"{folder}/log-{rank}")
    torch.set_num_threads(1)
    result = train(watched=True) | {"plain": train(watched=False)["losses"]}
    Path(f"{folder}/result-{rank}.json").write_text(json.dumps(result))
    distributed.barrier()
    os._exit(0)  # DeepSpeed's own threads and finalizers do not end on a CPU


def test_readings_and_losses_are_those_of_the_whole_model(tmp_path: Path) -> None:
    """Of the gathered weights, and of the same training without a monitor; a step has no collective of the monitor."""
    torchrun(rank_of_a_job, str(tmp_path))
    first, second = results_in(tmp_path, 2)
    check_read({"autotp": first})
    assert len(first["names"]) == 7
    for result in (first, second):
        assert result["losses"] == result["plain"]
        assert result["collectives"] == 0
    assert second["read"] == []
