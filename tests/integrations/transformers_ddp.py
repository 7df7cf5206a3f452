"""A job of two ranks with the Trainer of Hugging Face, as a user's script: python transformers_ddp.py FOLDER.

Trained twice: without a rule to stop on, and with one. Each rank writes its results, and is a fork of this process.
Run by test_transformers_ranks.py.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from esdmon_transformers import SpectralMonitor
from tests.ranks import fork
from tests.rules import ALWAYS


def train(folder: str, stop_on: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ids = torch.arange(16)
    data: Any = [{"input_ids": ids, "labels": ids}] * 64
    arguments = TrainingArguments(
        folder,
        max_steps=12,
        per_device_train_batch_size=2,
        use_cpu=True,
        ddp_backend="gloo",
        disable_tqdm=True,
        save_strategy="no",
    )
    monitor = SpectralMonitor(
        every=4,
        budget=None,
        alerts=[ALWAYS],
        stop_on=stop_on,
        save_on=stop_on,
        sinks=f"jsonl:{folder}/a.jsonl",
    )
    trainer = Trainer(GPT2LMHeadModel(config), arguments, train_dataset=data, callbacks=[monitor])
    trainer.train()
    result = {"steps": trainer.state.global_step, "errors": len(monitor.monitor.errors) if monitor.monitor else -1}
    Path(f"{folder}/rank-{os.environ['RANK']}.json").write_text(json.dumps(result))


def main(folder: str) -> None:
    torch.set_num_threads(1)
    for name, stop_on in (("not-asked", ()), ("asked", ("always",))):
        train(f"{folder}/{name}", stop_on)
    torch.distributed.barrier()  # without these two gloo aborts now and then when the interpreter ends
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    fork(main, *sys.argv[1:])
