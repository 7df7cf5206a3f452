"""A job of two ranks with the Trainer of Hugging Face, as a user's script: python transformers_ddp.py FOLDER.

Trained without a rule to stop on, and with one; and with weights that FSDP2 shards, with a monitor and without. Each
rank writes its results, and is a fork of this process. Run by test_transformers_ranks.py.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from esdmon.sinks import MemorySink
from esdmon_transformers import SpectralMonitor
from tests.integrations.transformers_runs import network
from tests.ranks import fork
from tests.rules import ALWAYS
from tests.runtime.ranks.sharded_jobs import difference, full, reading_of


def arguments(folder: str, **options: Any) -> TrainingArguments:
    """Of a training of twelve steps on a CPU, without any logger."""
    return TrainingArguments(
        folder,
        max_steps=12,
        per_device_train_batch_size=2,
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        **options,
    )


def given(folder: str) -> dict[str, Any]:
    ids = torch.arange(16)
    return {"args": arguments(folder), "train_dataset": [{"input_ids": ids, "labels": ids}] * 64}


def train(folder: str, stop_on: tuple[str, ...]) -> None:
    monitor = SpectralMonitor(
        every=4,
        budget=None,
        alerts=[ALWAYS],
        stop_on=stop_on,
        save_on=stop_on,
        sinks=f"jsonl:{folder}/a.jsonl",
    )
    trainer = Trainer(network(layers=1), **given(folder), callbacks=[monitor])
    trainer.train()
    result = {"steps": trainer.state.global_step, "errors": len(monitor.monitor.errors) if monitor.monitor else -1}
    Path(f"{folder}/rank-{os.environ['RANK']}.json").write_text(json.dumps(result))


class Sharded(Trainer):  # type: ignore[misc]  # transformers is untyped
    """Accelerate chooses FSDP on accelerators only; what shards the model is its own."""

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["GPT2Block"],
            state_dict_type="SHARDED_STATE_DICT",
        )
        self.accelerator.state.distributed_type = DistributedType.FSDP
        self.is_fsdp_enabled = True


class Keep(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
    """Keep the whole weights of each step, by torch's own collectives."""

    def __init__(self) -> None:
        self.states: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, _args: Any, state: Any, _control: Any, model: Any = None, **_: Any) -> None:
        self.states[state.global_step] = {name: full(weight).clone() for name, weight in model.state_dict().items()}


def train_sharded(folder: str) -> None:
    sink, keep = MemorySink(), Keep()
    monitor = SpectralMonitor(every=4, budget=None, sinks=[sink])
    losses = []
    for callbacks in ([keep, monitor], []):
        trainer = Sharded(network(layers=1), **given(folder), callbacks=callbacks)
        trainer.train()
        losses.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    read = [layer for report in sink.reports for layer in report.new]
    whole = {step: reading_of(network(layers=1), keep.states[step]) for step in {layer.step for layer in read}}
    result = {
        "losses": losses,
        "errors": len(monitor.monitor.errors) if monitor.monitor else -1,
        "read": [[layer.step, layer.name, layer.status, difference(layer, whole[layer.step])] for layer in read],
        "held": [layer.in_optimizer for layer in read],
    }
    Path(f"{folder}/rank-{os.environ['RANK']}.json").write_text(json.dumps(result))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    for name, stop_on in (("not-asked", ()), ("asked", ("always",))):
        train(f"{folder}/{name}", stop_on)
    train_sharded(f"{folder}/sharded")
    torch.distributed.barrier()  # without these two gloo aborts now and then when the interpreter ends
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    fork(main, *sys.argv[1:])
