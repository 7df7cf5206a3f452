"""Models and Trainers of Hugging Face for the tests of the callback."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

NAMES = ["transformer.h.0.attn.c_attn/q", "transformer.h.0.attn.c_attn/k", "transformer.h.0.attn.c_attn/v"]


class Tokens(Dataset[dict[str, Tensor]]):
    """96 rows of sixteen consecutive numbers modulo 50."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        ids = (torch.arange(16) + 7 * k) % 50
        return {"input_ids": ids, "labels": ids}


def network(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=16, n_embd=64, n_layer=layers, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    return model


def trainer(folder: Path, *callbacks: Any, model: nn.Module | None = None, **options: Any) -> Trainer:
    """A Trainer of twelve steps an epoch."""
    given = {"num_train_epochs": 1, "save_strategy": "no", "logging_steps": 1, "report_to": []} | options
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, use_cpu=True, disable_tqdm=True, seed=3, **given
    )
    return Trainer(model or network(), arguments, train_dataset=Tokens(), callbacks=list(callbacks))
