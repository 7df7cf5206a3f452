"""A job of two ranks with the Trainer of Hugging Face and DeepSpeed's ZeRO: python transformers_deepspeed.py FOLDER.

Trained with a monitor and without, with ZeRO-3, which shards the weights, and ZeRO-2, which does not. Each rank writes
its results, and is a fork of this process. Run by test_transformers_ranks.py, where DeepSpeed is installed.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import Trainer, TrainerCallback

from esdmon.sinks import MemorySink
from esdmon_transformers import SpectralMonitor
from tests.integrations.transformers_ddp import arguments
from tests.integrations.transformers_runs import network
from tests.ranks import fork
from tests.runtime.ranks.sharded_jobs import difference, reading_of


class Keep(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Keep the whole weights of each step, by DeepSpeed's own collectives."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        import deepspeed  # type: ignore[import-not-found,unused-ignore]

        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            whole = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self.states[state.global_step] = whole
        distributed.barrier()


def train(folder: str, stage: int, *, watched: bool) -> dict[str, Any]:
    ids = torch.arange(16)
    data: Any = [{"input_ids": (ids + k) % 50, "labels": (ids + k) % 50} for k in range(64)]
    config = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    options: dict[str, Any] = {"gradient_accumulation_steps": 2, "optim": "sgd", "learning_rate": 0.05}
    given = arguments(folder, **options, deepspeed=config)
    sink, keep = MemorySink(), Keep()
    monitor = SpectralMonitor(every=3, budget=None, sinks=[sink])
    callbacks = [keep, monitor] if watched else [keep]
    trainer = Trainer(network(layers=1), given, train_dataset=data, callbacks=callbacks)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    if not watched:
        return {"losses": losses}
    read = [layer for report in sink.reports for layer in report.new]
    whole = {
        step: reading_of(network(layers=1), tied(network(layers=1), keep.states[step]))
        for step in {layer.step for layer in read}
    }
    return {
        "losses": losses,
        "errors": [fault.message for fault in monitor.monitor.errors] if monitor.monitor else [""],
        "read": [[layer.step, layer.name, layer.status, difference(layer, whole[layer.step])] for layer in read],
        "in_optimizer": [layer.in_optimizer for layer in read],
    }


def tied(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model whose head is its embedding."""
    return model.state_dict() | weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def main(folder: str) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(1)
    from deepspeed.comm import torch as backend  # type: ignore[import-not-found,unused-ignore]

    backend.build_shm_op = lambda: None  # a build of minutes
    results = {
        stage: train(folder, stage, watched=True) | {"plain": train(folder, stage, watched=False)["losses"]}
        for stage in (3, 2)
    }
    Path(f"{folder}/rank-{os.environ['RANK']}.json").write_text(json.dumps(results))
    distributed.barrier()
    os._exit(0)  # DeepSpeed's own threads and finalizers do not end on a CPU


if __name__ == "__main__":
    fork(main, *sys.argv[1:])
