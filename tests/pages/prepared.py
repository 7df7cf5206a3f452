"""What the code blocks of the pages find: a small training, and a folder with its run, checkpoints and rules."""

import importlib.util
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

import esdmon

ROOT = Path(__file__).parents[2]
STEPS = 80
Loss = Callable[[tuple[Tensor, Tensor]], Tensor]
Training = tuple[nn.Module, torch.optim.Optimizer, Loss, list[tuple[Tensor, Tensor]]]


def small_training() -> Training:
    """Return a model of three layers, its optimizer, its loss, and 80 batches of a teacher's answers."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(64, 96), relu1=nn.ReLU(), fc2=nn.Linear(96, 64), relu2=nn.ReLU(), fc3=nn.Linear(64, 10)
        )
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    teacher = torch.randn(64, 10, generator=random)
    inputs = torch.randn(STEPS, 16, 64, generator=random)
    loader = [(batch, (batch @ teacher).argmax(dim=1)) for batch in inputs]

    def loss_of(batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, optimizer, loss_of, loader


def train(
    _model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Loss, loader: Iterable[tuple[Tensor, Tensor]]
) -> None:
    """Take a step for each batch."""
    for batch in loader:
        loss_of(batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad()


def small_gpt2() -> tuple[nn.Module, Any, list[dict[str, list[int]]]]:
    """Return a GPT-2 of one block, the arguments of its Trainer, and data."""
    from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

    config = GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=1, n_head=2)
    ids = list(range(16))
    return GPT2LMHeadModel(config), TrainingArguments("runs", report_to="none"), [{"input_ids": ids, "labels": ids}]


def learned_matrix(n: int, m: int) -> NDArray[np.float64]:
    """Return noise and five directions that stand out of it."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, m)) + 0.3 * rng.standard_normal((n, 5)) @ rng.standard_normal((5, m))


def missing(package: str) -> bool:
    """Return whether a package is not installed."""
    return importlib.util.find_spec(package) is None


NAMES = {each.__name__: each for each in (small_training, train, small_gpt2, learned_matrix, missing)}
"""The functions that invisible blocks call."""


def fill(folder: Path) -> None:
    """Write the files that commands on the pages read."""
    model, optimizer, loss_of, loader = small_training()
    with esdmon.watch(model, optimizer, every=20, budget=None, sinks=[f"jsonl:{folder}/runs/a/esdmon.jsonl"]):
        for place in ("base", "step-1000", "step-2000", "step-3000", "tuned"):
            train(model, optimizer, loss_of, loader[:20])
            (folder / place).mkdir()
            save_file(model.state_dict(), folder / place / "model.safetensors")
    save_file(model.state_dict(), folder / "model.safetensors")
    torch.save({"model": model.state_dict()}, folder / "checkpoint.pt")
    (rules,) = re.findall(r"```toml\n(\[rules.*?)```", (ROOT / "docs" / "rules.md").read_text("utf-8"), re.DOTALL)
    (folder / "alerts.toml").write_text(rules, encoding="utf-8")
