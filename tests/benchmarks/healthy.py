"""Define healthy trainings of many kinds, on data in packages: scikit-learn's digits, the help texts of Python.

A `Task` is a network with its data and its loss; a `Run` is a task, an optimizer, a schedule and a seed. Recipes are
those that practitioners use, and each run says by its own loss and accuracy whether it went well.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from pydoc_data.topics import topics

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.optim.lr_scheduler import LambdaLR

from esdmon.cli.digits import MiniAlexNet, digits

_HELD_BACK = 397  # of the 1797 digits
_WINDOW = 32  # characters that a language model sees
_WORDS = 2000  # in the vocabulary of the model of words
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """What is trained, on what."""

    model: nn.Module
    data: Batch
    held_back: Batch
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    lr: float = 1.0
    """Factor on the learning rate of the optimizer: how delicate the network is."""
    layers: tuple[str, ...] | None = None
    given: Callable[[nn.Module], Iterable[nn.Parameter]] = field(default=nn.Module.parameters)
    """What the optimizer is given."""

    def held_back_loss(self) -> float:
        """On examples that are not trained on."""
        self.model.eval()
        with torch.no_grad():
            loss = float(self.loss(self.model, *self.held_back))
        self.model.train()
        return loss


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a training depends on."""

    task: str
    optimizer: str = "SGD .9"
    schedule: str = "constant"
    batch_size: int = 32
    steps: int = 600
    readings: int = 40
    seed: int = 0
    clip: bool = False

    @property
    def name(self) -> str:
        """What a file of it is called."""
        parts = (self.task, self.optimizer, self.schedule, f"b{self.batch_size}", f"s{self.seed}")
        return "_".join(parts).replace(" ", "-")


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1),
    "SGD .9": partial(torch.optim.SGD, lr=0.02, momentum=0.9),
    "SGD .9 wd 5e-4": partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=5e-4, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
    "AdamW .01": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01),
    "AdamW .1": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95)),
    "RMSprop": partial(torch.optim.RMSprop, lr=5e-4),
    "Adadelta": partial(torch.optim.Adadelta, lr=0.5),
    "Muon": partial(torch.optim.Muon, lr=0.02, weight_decay=0.01),
}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "warm-up": lambda done: min(1.0, done / 0.1) * (1 - 0.9 * done),
    "steps": lambda done: 0.1 ** int(3 * done),
    "one-cycle": lambda done: 0.1 + 2.9 * max(0.0, 1 - abs(done - 0.3) / 0.3) if done < 0.6 else 0.1 * (1 - done) / 0.4,
}


def train(
    run: Run, task: Task, step: Callable[[nn.Module, torch.optim.Optimizer], Callable[[], None]]
) -> tuple[float, float]:
    """Train; returns the loss on held-back examples before and after.

    Args:
        run: the recipe.
        task: what is trained.
        step: given the model and the optimizer, gives what is called at the end.
    """
    given = list(task.given(task.model))
    optimizer = OPTIMIZERS[run.optimizer](given)
    for group in optimizer.param_groups:
        group["lr"] *= task.lr
    schedule = LambdaLR(optimizer, lambda done: SCHEDULES[run.schedule](done / run.steps))
    before = task.held_back_loss()
    close = step(task.model, optimizer)
    for inputs, targets in batches(task.data, run.batch_size, run.steps, seed=run.seed):
        loss = task.loss(task.model, inputs, targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if run.clip:
            nn.utils.clip_grad_norm_(given, 1.0)
        optimizer.step()
        schedule.step()
    close()
    return before, task.held_back_loss()


def batches(data: Batch, size: int, steps: int, *, seed: int) -> Iterator[Batch]:
    """So many, in passes that are shuffled each time."""
    shuffler = torch.Generator().manual_seed(seed)
    inputs, targets = data
    done = 0
    while True:
        for index in torch.split(torch.randperm(len(inputs), generator=shuffler), size):
            if done == steps:
                return
            done += 1
            yield inputs[index], targets[index]


def classify(model: nn.Module, inputs: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy; of each position where there are several."""
    return functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten(), label_smoothing=smoothing)


def reconstruct(model: nn.Module, inputs: Tensor, _targets: Tensor) -> Tensor:
    """Mean squared error."""
    return functional.mse_loss(model(inputs), inputs)


def mlp(*widths: int, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Flatten()]
    for first, second in pairwise(widths[:-1]):
        layers.append(nn.Linear(first, second))
        layers += [nn.BatchNorm1d(second)] if norm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*inner)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


def resnet() -> nn.Sequential:
    """Three residual blocks of two convolutions with batch norm."""

    def conv(first: int, second: int, stride: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(first, second, 3, stride, padding=1, bias=False), nn.BatchNorm2d(second)]

    def block(width: int) -> nn.Module:
        return Residual(*conv(width, width), nn.ReLU(), *conv(width, width))

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(
        *conv(1, 64, 2), nn.ReLU(), block(64), nn.ReLU(), *conv(64, 128, 2), nn.ReLU(), block(128), nn.ReLU(), *head
    )


def zero_residual() -> nn.Sequential:
    """Residual blocks whose last layer starts at zero, so that each is the identity at first."""
    blocks = [Residual(nn.LayerNorm(128), nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)) for _ in range(3)]
    for block in blocks:
        last = block.inner[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 128), *blocks, nn.Linear(128, 10))


class Decoder(nn.Module):
    """A causal transformer."""

    def __init__(self, vocabulary: int, width: int = 96, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(_WINDOW, width) * 0.02)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, blocks, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        out: Tensor = self.head(self.blocks(self.embed(ids) + self.place[: ids.shape[1]], mask=mask, is_causal=True))
        return out


class Rows(nn.Module):
    """A transformer that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 96)
        block = nn.TransformerEncoderLayer(96, 4, 192, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(96, 10)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(self.embed(images.squeeze(1))).mean(1))
        return out


class Recurrent(nn.Module):
    """An LSTM or a GRU over characters."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 64)
        self.cell = kind(64, 96, batch_first=True)
        self.head = nn.Linear(96, vocabulary)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.cell(self.embed(ids))[0])
        return out


class Words(nn.Module):
    """The next word by the mean of those before; the embedding has a row for padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(_WORDS, 96, padding_idx=0)
        self.hidden = nn.Linear(96, 128)
        self.head = nn.Linear(128, _WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.head(functional.relu(self.hidden(self.embed(ids).mean(1))))
        return out


@lru_cache
def _images(side: int = 16) -> tuple[Batch, Batch]:
    images, labels = digits(side)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return (images[_HELD_BACK:], labels[_HELD_BACK:]), (images[:_HELD_BACK], labels[:_HELD_BACK])


@lru_cache
def _characters() -> tuple[Batch, Batch, int]:
    text = "".join(topics.values())[:300_000]
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([known[character] for character in text])
    ids = ids[: len(ids) // (_WINDOW + 1) * (_WINDOW + 1)].view(-1, _WINDOW + 1)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return (inputs[256:], targets[256:]), (inputs[:256], targets[:256]), len(known)


@lru_cache
def _words() -> tuple[Batch, Batch]:
    words = "".join(topics.values()).lower().split()[:40_000]
    common = [word for word, _ in Counter(words).most_common(_WORDS - 2)]
    known = {word: number for number, word in enumerate(common, start=2)}  # 0 pads, 1 is any other
    ids = torch.tensor([0] * 4 + [known.get(word, 1) for word in words])
    windows = ids.unfold(0, 9, 1)
    inputs, targets = windows[:, :8].contiguous(), windows[:, 8].contiguous()
    return (inputs[500:], targets[500:]), (inputs[:500], targets[:500])


def _of_images(make: Callable[[], nn.Module], **options: object) -> Task:
    return Task(make(), *_images(), **{"loss": classify} | options)  # type: ignore[arg-type]


def small_images() -> tuple[Batch, Batch]:
    """64 inputs from 0 to 1, as most who try something on digits take them."""
    (images, labels), (others, their_labels) = _images(8)
    low, high = images.min(), images.max()
    return ((images - low) / (high - low), labels), ((others - low) / (high - low), their_labels)


def _of_small_images(make: Callable[[], nn.Module], **options: object) -> Task:
    return Task(make(), *small_images(), **{"loss": classify} | options)  # type: ignore[arg-type]


def _of_characters(make: Callable[[int], nn.Module], **options: object) -> Task:
    data, held_back, vocabulary = _characters()
    return Task(make(vocabulary), data, held_back, loss=classify, **options)  # type: ignore[arg-type]


def _of_words() -> Task:
    return Task(Words(), *_words(), loss=classify, layers=("*",))


def _half(images: Batch, *, first: bool) -> Batch:
    chosen = (images[1] < 5) == first
    return images[0][chosen], images[1][chosen]


def _pretrained() -> nn.Sequential:
    """A network that knows the digits 0 to 4."""
    data, held_back = (_half(part, first=True) for part in _images())
    task = Task(mlp(256, 256, 192, 10), data, held_back, classify)
    train(Run(task="", steps=300), task, lambda _model, _optimizer: lambda: None)
    return task.model  # type: ignore[return-value]


def _tuned(change: Callable[[nn.Sequential], nn.Module] = lambda model: model, **options: object) -> Task:
    """That network, to learn the digits 5 to 9."""
    data, held_back = (_half(part, first=False) for part in _images())
    return Task(change(_pretrained()), data, held_back, classify, **{"lr": 0.3} | options)  # type: ignore[arg-type]


def _frozen(model: nn.Sequential) -> nn.Sequential:
    for parameter in list(model.parameters())[:-2]:  # all but the last layer's
        parameter.requires_grad = False
    return model


def _pruned(model: nn.Sequential) -> nn.Sequential:
    for layer in list(model)[:-1]:
        if isinstance(layer, nn.Linear):
            prune.l1_unstructured(layer, "weight", 0.8)  # type: ignore[no-untyped-call]
    return model


def _adapted(model: nn.Sequential) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    adapted: nn.Module = get_peft_model(model, LoraConfig(r=16, target_modules=["1", "3"]))
    return adapted


def _trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _matrices(model: nn.Module) -> Iterable[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim == 2]


_rounded = partial(classify, smoothing=0.1)
TASKS: dict[str, Callable[[], Task]] = {
    "MLP": lambda: _of_images(lambda: mlp(256, 256, 128, 10)),
    "wide MLP": lambda: _of_images(lambda: mlp(256, 512, 512, 10)),
    "MLP, 64 inputs": lambda: _of_small_images(lambda: mlp(64, 128, 64, 10)),
    "MLP, 64 inputs, fast": lambda: _of_small_images(lambda: mlp(64, 128, 64, 10), lr=3.0),
    "narrow MLP, 64 inputs, fast": lambda: _of_small_images(lambda: mlp(64, 64, 64, 10), lr=3.0),
    "deep MLP, batch norm": lambda: _of_images(lambda: mlp(256, *[128] * 5, 10, norm=True)),
    "MLP, dropout": lambda: _of_images(lambda: mlp(256, 256, 128, 10, dropout=0.5), loss=_rounded),
    "MiniAlexNet": lambda: _of_images(MiniAlexNet, lr=0.25),
    "ResNet": lambda: _of_images(resnet),
    "zero residual": lambda: _of_images(zero_residual, lr=0.5),
    "transformer on rows": lambda: _of_images(Rows, lr=0.5),
    "autoencoder": lambda: _of_images(
        lambda: nn.Sequential(mlp(256, 192, 80, 192, 256), nn.Unflatten(1, (1, 16, 16))), loss=reconstruct
    ),
    "decoder": lambda: _of_characters(Decoder, lr=0.5),
    "LSTM": lambda: _of_characters(partial(Recurrent, nn.LSTM), lr=2.0),
    "GRU": lambda: _of_characters(partial(Recurrent, nn.GRU), lr=2.0),
    "words": _of_words,
    "fine-tuned": _tuned,
    "fine-tuned, frozen, in optimizer": lambda: _tuned(_frozen),
    "fine-tuned, frozen, not in optimizer": lambda: _tuned(_frozen, given=_trainable),
    "fine-tuned, pruned": lambda: _tuned(_pruned),
    "fine-tuned, LoRA": lambda: _tuned(_adapted, given=_trainable, lr=1.0),
    "matrices only": lambda: _of_images(lambda: mlp(256, 256, 128, 10), given=_matrices),
}
