"""Hugging Face's Trainer with one callback: a small GPT-2 learns the help texts of Python, byte by byte.

python examples/transformers_text.py && tensorboard --logdir runs/transformers
"""

from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from esdmon_transformers import SpectralMonitor

LENGTH = 64


class Windows(Dataset[dict[str, Tensor]]):
    """Windows of English text, as byte values."""

    def __init__(self) -> None:
        self.text = torch.tensor(list("".join(topics.values()).encode()))

    def __len__(self) -> int:
        return len(self.text) // LENGTH

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        window = self.text[k * LENGTH : (k + 1) * LENGTH]
        return {"input_ids": window, "labels": window}


def train(out: str = "runs/transformers", steps: int = 300) -> SpectralMonitor:
    """Train and return the callback, whose `monitor` has the last report."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=LENGTH, n_embd=128, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
    )
    arguments = TrainingArguments(
        out,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        report_to=["tensorboard"],
        logging_steps=10,
        save_strategy="no",
        disable_tqdm=True,
    )
    monitor = SpectralMonitor(every=50)  # the one line
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Windows(), callbacks=[monitor]).train()
    return monitor


if __name__ == "__main__":
    callback = train()
    print(callback.monitor.report if callback.monitor else "")
