"""Define healthy trainings and the faults that are injected into them, for `value.py` and `unseen.py`.

A `Recipe` is a healthy training of `healthy.py`. A fault takes hold of a `Training` once, at its step, and stays; a
`Kind` is a fault with the recipes and the strengths at which it is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.benchmarks.healthy import OPTIMIZERS, TASKS, Batch, Decoder, Task, batches, mlp
from tests.benchmarks.kinds import KINDS

SEED = 300
_BASELINE = 12  # readings before a fault, and after it, at the least


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A healthy training, and the step at which a fault is put into it."""

    task: str
    optimizer: str
    begin: int = 300
    after: int = 300
    """Steps that are trained with the fault."""
    batch_size: int = 32
    clip: bool = False
    is_cheap: bool = False
    """Whether it is trained long enough for sparse readings, too."""
    seed: int = SEED
    """Of the first weights, the order of the data, and what a fault draws."""

    @property
    def name(self) -> str:
        return f"{self.task}, {self.optimizer}"

    def at(self, every: int) -> Recipe:
        """Return it with enough readings before and after the fault."""
        least = _BASELINE * every
        return replace(self, begin=max(self.begin, least), after=max(self.after, least))

    def make(self, *, other: bool = False) -> Task:
        """Return what is trained, with its first weights or others; random numbers outside are left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed + other)
            return (TASKS | KINDS | _TASKS)[self.task]()


def _small_decoder() -> Task:
    task = TASKS["decoder"]()
    vocabulary = task.model.get_parameter("head.weight").shape[0]
    return replace(task, model=Decoder(vocabulary, 64, 1))


_TASKS: dict[str, Callable[[], Task]] = {
    "small decoder": _small_decoder,
    "small MLP": lambda: replace(TASKS["matrices only"](), model=mlp(256, 64, 64, 10)),
}
MLP_SGD = Recipe(task="MLP", optimizer="SGD", begin=600, after=600, is_cheap=True)
MLP_ADAM = replace(MLP_SGD, optimizer="Adam")
MLP_ADAMW = replace(MLP_SGD, optimizer="AdamW .01")
MUON = Recipe(task="small MLP", optimizer="Muon")
CNN = Recipe(task="MiniAlexNet", optimizer="SGD .9")
RESNET = Recipe(task="ResNet", optimizer="SGD .9", begin=240, after=180)
SMALL_DECODER = Recipe(
    task="small decoder", optimizer="AdamW .01", begin=400, after=400, batch_size=16, clip=True, is_cheap=True
)
DECODER = Recipe(task="decoder", optimizer="AdamW .1", begin=240, after=180, batch_size=16, clip=True)
LSTM = Recipe(task="LSTM", optimizer="AdamW .01", begin=400, after=400, batch_size=16, clip=True)
WORDS = Recipe(task="words", optimizer="SGD .9", begin=500, after=500, is_cheap=True)


class Training:
    """What a fault may meddle with; `step` trains on one batch."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.task = recipe.make()
        self.model = self.task.model
        self.given = list(self.task.given(self.model))
        self.optimizer = OPTIMIZERS[recipe.optimizer](self.given)
        for group in self.optimizer.param_groups:
            group["lr"] *= self.task.lr
        self.initial = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.batches = self.in_batches_of(recipe.batch_size)
        self.generator = torch.Generator().manual_seed(recipe.seed + 1)
        """For what a fault draws."""
        self.factor = 1.0
        """On the loss."""
        self.extra: Callable[[], Tensor] | None = None
        """A term of the loss that ought not to be there."""
        self.spoil: Callable[[], object] | None = None
        """Done to the gradients before the optimizer's step."""

    def in_batches_of(self, size: int) -> Iterator[Batch]:
        return batches(self.task.data, size, self.recipe.begin + self.recipe.after, seed=self.recipe.seed)

    def named(self, *patterns: str) -> list[nn.Parameter]:
        """Return the parameters whose names match."""
        found = [p for name, p in self.model.named_parameters() if _matches(name, patterns)]
        assert found, f"{self.recipe.name} has no parameter {patterns}"
        return found

    def backward(self) -> None:
        """Compute the gradients of the next batch."""
        inputs, targets = next(self.batches)
        loss = self.factor * self.task.loss(self.model, inputs, targets)
        if self.extra is not None:
            loss = loss + self.extra()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.spoil is not None:
            self.spoil()

    def step(self) -> tuple[float, float]:
        """Train on a batch; returns the norm of the gradient before it is clipped, and ‖ΔW‖/‖W‖ over all weights."""
        self.backward()
        gradients = [p.grad for p in self.given if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.given, 1.0)
        before = torch.cat([p.detach().flatten() for p in self.given])
        self.optimizer.step()
        after = torch.cat([p.detach().flatten() for p in self.given])
        return norm, float((after - before).norm() / before.norm())

    def held_back(self) -> tuple[float, float]:
        """Return the loss and the accuracy on 256 examples that are not trained on."""
        inputs, targets = (part[:256] for part in self.task.held_back)
        self.model.eval()
        with torch.no_grad():
            out = self.model(inputs).flatten(0, -2)
        self.model.train()
        right = out.argmax(-1) == targets.flatten()
        return float(functional.cross_entropy(out, targets.flatten())), float(right.float().mean())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


Fault = Callable[[Training], None]


def decayed(strength: float, *patterns: str) -> Fault:
    """Give all weights a weight decay, or what matches, in a group of its own."""

    def begin(training: Training) -> None:
        for group in training.optimizer.param_groups if not patterns else [_own_group(training, patterns)]:
            group["weight_decay"] = strength

    return begin


def _own_group(training: Training, patterns: Iterable[str]) -> dict[str, Any]:
    """Move what matches to a group of the optimizer with the same settings."""
    chosen = training.named(*patterns)
    (group,) = training.optimizer.param_groups
    group["params"] = [p for p in group["params"] if not any(p is other for other in chosen)]
    training.optimizer.add_param_group({**group, "params": chosen})
    return training.optimizer.param_groups[-1]


def raised_rate(factor: float) -> Fault:
    def begin(training: Training) -> None:
        for group in training.optimizer.param_groups:
            group["lr"] *= factor

    return begin


def small_batches(size: int) -> Fault:
    def begin(training: Training) -> None:
        training.batches = training.in_batches_of(size)

    return begin


def random_labels(share: float) -> Fault:
    """Replace that share of the labels of each batch by random ones."""

    def begin(training: Training) -> None:
        classes = int(training.task.data[1].max()) + 1
        draw = training.generator

        def spoiled(good: Iterator[Batch]) -> Iterator[Batch]:
            for inputs, targets in good:
                wrong = torch.rand(targets.shape, generator=draw) < share
                yield inputs, torch.where(wrong, torch.randint(classes, targets.shape, generator=draw), targets)

        training.batches = spoiled(training.batches)

    return begin


def scaled_inputs(factor: float) -> Fault:
    """Scale what is trained on, and not what is held back."""

    def begin(training: Training) -> None:
        training.batches = ((inputs * factor, targets) for inputs, targets in training.batches)

    return begin


def one_batch(training: Training) -> None:
    training.batches = repeat(next(training.batches))


def begun_again(*patterns: str, scale: float = 1.0) -> Fault:
    """Initialise what matches by other random numbers, so many times as large; the optimizer keeps its state."""

    def begin(training: Training) -> None:
        new = training.recipe.make(other=True).model.state_dict()
        _put(
            training,
            {name: scale * value if _matches(name, patterns) else value for name, value in new.items()},
            patterns,
        )

    return begin


def not_loaded(*patterns: str) -> Fault:
    """Give what matches the values with which the training began, buffers too."""
    return lambda training: _put(training, training.initial, patterns)


def _put(training: Training, values: dict[str, Tensor], patterns: Iterable[str]) -> None:
    chosen = {name: value for name, value in values.items() if _matches(name, patterns)}
    assert chosen, f"{training.recipe.name} has nothing named {patterns}"
    training.model.load_state_dict(chosen, strict=False)


def scaled_loss(factor: float) -> Fault:
    def begin(training: Training) -> None:
        training.factor = factor

    return begin


def reversed_gradient(*patterns: str) -> Fault:
    """Turn the gradient of what matches round."""

    def begin(training: Training) -> None:
        chosen = training.named(*patterns)
        training.spoil = lambda: [p.grad.neg_() for p in chosen if p.grad is not None]

    return begin


def cut_off(module: str) -> Fault:
    def begin(training: Training) -> None:
        training.model.get_submodule(module).register_forward_hook(lambda _module, _inputs, out: out.detach())

    return begin


def drawn_together(name: str, strength: float) -> Fault:
    """Draw all rows of a matrix to its second; the first may be zero, for padding."""

    def begin(training: Training) -> None:
        (weight,) = training.named(name)
        point = weight[1].detach().clone()
        training.extra = lambda: strength * (weight - point).square().sum()

    return begin


@dataclass(frozen=True)
class Case:
    """A fault in a training."""

    recipe: Recipe
    how: str
    fault: Fault


@dataclass(frozen=True)
class Kind:
    """Faults of one sort."""

    name: str
    right: frozenset[str]
    """Rules that name the cause."""
    cases: tuple[Case, ...]


def kind(name: str, right: str, *cases: tuple[Recipe, str, Fault]) -> Kind:
    """Return a kind; `right` are names of rules."""
    return Kind(name, frozenset(right.split()), tuple(Case(*case) for case in cases))
