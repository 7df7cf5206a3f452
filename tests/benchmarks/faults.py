"""Trainings that go wrong from a step on, in one of fourteen ways, and what counts as the right name of each.

A `Recipe` is a healthy training of `healthy.py`; a `Kind` is a fault with the recipes and the strengths at which it is
tried. A fault takes hold of a `Training` once, at its step, and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.benchmarks.healthy import OPTIMIZERS, TASKS, Batch, Decoder, Task, batches, mlp

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

    @property
    def name(self) -> str:
        return f"{self.task}, {self.optimizer}"

    def at(self, every: int) -> Recipe:
        """Return it with enough readings before and after the fault."""
        least = _BASELINE * every
        return replace(self, begin=max(self.begin, least), after=max(self.after, least))

    def make(self, seed: int = SEED) -> Task:
        """Return what is trained, as that seed initialises it; random numbers outside are left alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _TASKS[self.task]() if self.task in _TASKS else TASKS[self.task]()


def _small_decoder() -> Task:
    task = TASKS["decoder"]()
    vocabulary = task.model.get_parameter("head.weight").shape[0]
    return replace(task, model=Decoder(vocabulary, 64, 1))


_TASKS: dict[str, Callable[[], Task]] = {
    "small decoder": _small_decoder,
    "small MLP": lambda: replace(TASKS["matrices only"](), model=mlp(256, 64, 64, 10)),
}
_MLP_SGD = Recipe(task="MLP", optimizer="SGD", begin=600, after=600, is_cheap=True)
_MLP_ADAM = replace(_MLP_SGD, optimizer="Adam")
_MLP_ADAMW = replace(_MLP_SGD, optimizer="AdamW .01")
_MUON = Recipe(task="small MLP", optimizer="Muon")
_CNN = Recipe(task="MiniAlexNet", optimizer="SGD .9")
_RESNET = Recipe(task="ResNet", optimizer="SGD .9", begin=240, after=180)
_SMALL = Recipe(
    task="small decoder", optimizer="AdamW .01", begin=400, after=400, batch_size=16, clip=True, is_cheap=True
)
_DECODER = Recipe(task="decoder", optimizer="AdamW .1", begin=240, after=180, batch_size=16, clip=True)
_LSTM = Recipe(task="LSTM", optimizer="AdamW .01", begin=400, after=400, batch_size=16, clip=True)
_WORDS = Recipe(task="words", optimizer="SGD .9", begin=500, after=500, is_cheap=True)


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
        self.generator = torch.Generator().manual_seed(SEED + 1)
        """For what a fault draws."""
        self.factor = 1.0
        """On the loss."""
        self.extra: Callable[[], Tensor] | None = None
        """A term of the loss that ought not to be there."""
        self.spoil: Callable[[], object] | None = None
        """Done to the gradients before the optimizer's step."""

    def in_batches_of(self, size: int) -> Iterator[Batch]:
        return batches(self.task.data, size, self.recipe.begin + self.recipe.after, seed=SEED)

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


def _decay(strength: float) -> Fault:
    def begin(training: Training) -> None:
        for group in training.optimizer.param_groups:
            group["weight_decay"] = strength

    return begin


def _rate(factor: float) -> Fault:
    def begin(training: Training) -> None:
        for group in training.optimizer.param_groups:
            group["lr"] *= factor

    return begin


def _small_batches(size: int) -> Fault:
    def begin(training: Training) -> None:
        training.batches = training.in_batches_of(size)

    return begin


def _noisy(share: float) -> Fault:
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


def _inputs(factor: float) -> Fault:
    """Scale what is trained on, and not what is held back."""

    def begin(training: Training) -> None:
        training.batches = ((inputs * factor, targets) for inputs, targets in training.batches)

    return begin


def _one_batch(training: Training) -> None:
    training.batches = repeat(next(training.batches))


def _begun(*patterns: str) -> Fault:
    """Initialise what matches by other random numbers; the optimizer keeps its state."""

    def begin(training: Training) -> None:
        _put(training, training.recipe.make(SEED + 1).model.state_dict(), patterns)

    return begin


def _not_loaded(*patterns: str) -> Fault:
    """Give what matches the values with which the training began, buffers too."""
    return lambda training: _put(training, training.initial, patterns)


def _put(training: Training, values: dict[str, Tensor], patterns: Iterable[str]) -> None:
    chosen = {name: value for name, value in values.items() if _matches(name, patterns)}
    assert chosen, f"{training.recipe.name} has nothing named {patterns}"
    training.model.load_state_dict(chosen, strict=False)


def _scaled(factor: float) -> Fault:
    def begin(training: Training) -> None:
        training.factor = factor

    return begin


def _reversed(*patterns: str) -> Fault:
    """Turn the gradient of what matches round."""

    def begin(training: Training) -> None:
        chosen = training.named(*patterns)
        training.spoil = lambda: [p.grad.neg_() for p in chosen if p.grad is not None]

    return begin


def _cut_off(module: str) -> Fault:
    def begin(training: Training) -> None:
        training.model.get_submodule(module).register_forward_hook(lambda _module, _inputs, out: out.detach())

    return begin


def _drawn_together(name: str, strength: float) -> Fault:
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


def _kind(name: str, right: str, *cases: tuple[Recipe, str, Fault]) -> Kind:
    return Kind(name, frozenset(right.split()), tuple(Case(*case) for case in cases))


_SHRINKS = "scale_collapse entropy_collapse over_regularized rank_collapse norm_decay"
_LEAPS = "norm_explosion update_surge non_finite"
_RESET = "phase_regression layer_reset"
_FF = "blocks.layers.0.linear"

KINDS = (
    _kind(
        "weight decay too strong (SGD)",
        _SHRINKS,
        *((_MLP_SGD, f"{strength}", _decay(strength)) for strength in (0.02, 0.05)),
        *((_CNN, f"{strength}", _decay(strength)) for strength in (0.1, 0.3)),
        (_RESNET, "0.1", _decay(0.1)),
    ),
    _kind(
        "weight decay too strong (AdamW, Muon)",
        _SHRINKS,
        *((_MLP_ADAMW, f"{strength}", _decay(strength)) for strength in (3.0, 10.0)),
        (_SMALL, "20", _decay(20.0)),
        (_LSTM, "5", _decay(5.0)),
        (_MUON, "2", _decay(2.0)),
    ),
    _kind(
        "learning rate raised (SGD)",
        _LEAPS,
        *((_MLP_SGD, f"×{factor:g}", _rate(factor)) for factor in (2, 5)),
        *((_CNN, f"×{factor:g}", _rate(factor)) for factor in (5, 10)),
        (_RESNET, "×20", _rate(20)),
    ),
    _kind(
        "learning rate raised (Adam, Muon)",
        _LEAPS,
        *((_MLP_ADAM, f"×{factor:g}", _rate(factor)) for factor in (20, 50)),
        (_SMALL, "×30", _rate(30)),
        (_LSTM, "×20", _rate(20)),
        (_MUON, "×10", _rate(10)),
    ),
    _kind(
        "batches far too small",
        f"over_regularized {_LEAPS}",
        (_MLP_SGD, "of 1", _small_batches(1)),
        (_MLP_ADAMW, "of 2", _small_batches(2)),
        (_CNN, "of 1", _small_batches(1)),
        (_LSTM, "of 1", _small_batches(1)),
    ),
    _kind(
        "labels random",
        "update_surge stable_rank_drop",
        *((_MLP_ADAMW, f"{share} of them", _noisy(share)) for share in (0.4, 0.8)),
        (_CNN, "0.8 of them", _noisy(0.8)),
        (_SMALL, "0.8 of them", _noisy(0.8)),
        (_LSTM, "0.4 of them", _noisy(0.4)),
    ),
    _kind(
        "a layer begun again",
        _RESET,
        (_MLP_ADAMW, "first", _begun("1.*")),
        (_MLP_SGD, "second", _begun("3.*")),
        (_CNN, "fc1", _begun("fc1.*")),
        (_RESNET, "a convolution", _begun("8.inner.0.*")),
        (_SMALL, "feed-forward", _begun(f"{_FF}1.*")),
        (_MUON, "second", _begun("3.*")),
    ),
    _kind(
        "a part of a checkpoint not loaded",
        _RESET,
        (_MLP_ADAMW, "first and last", _not_loaded("1.*", "5.*")),
        (_CNN, "fc2 and fc3", _not_loaded("fc2.*", "fc3.*")),
        (_RESNET, "last block", _not_loaded("8.*")),
        (_DECODER, "block 1 and head", _not_loaded("blocks.layers.1.*", "head.*")),
    ),
    _kind(
        "loss of another scale",
        _LEAPS,
        *((_MLP_SGD, f"×{factor}", _scaled(factor)) for factor in (10, 30)),
        (_CNN, "×30", _scaled(30)),
        (_RESNET, "×30", _scaled(30)),
    ),
    _kind(
        "gradient of a layer reversed",
        f"{_LEAPS} stable_rank_drop",
        (_MLP_SGD, "second", _reversed("3.*")),
        (_MLP_ADAMW, "first", _reversed("1.*")),
        (_RESNET, "a convolution", _reversed("8.inner.0.*")),
        (_SMALL, "feed-forward", _reversed(f"{_FF}1.*")),
    ),
    _kind(
        "a layer cut off",
        "dead_layer",
        (_MLP_SGD, "after the first", _cut_off("1")),
        (_MLP_ADAMW, "after the first", _cut_off("1")),
        (_CNN, "after conv2", _cut_off("conv2")),
        (_SMALL, "feed-forward", _cut_off(f"{_FF}2")),
        (_MUON, "after the first", _cut_off("1")),
    ),
    _kind(
        "inputs not normalised",
        _LEAPS,
        *((_MLP_SGD, f"×{factor}", _inputs(factor)) for factor in (3, 10)),
        (_MLP_ADAMW, "×10", _inputs(10)),
        (_CNN, "×10", _inputs(10)),
        (_RESNET, "×10", _inputs(10)),
    ),
    _kind(
        "the same batch again and again",
        "stable_rank_drop over_regularized update_surge",
        (_MLP_SGD, "32", _one_batch),
        (_MLP_ADAMW, "32", _one_batch),
        (_CNN, "32", _one_batch),
        (_SMALL, "16", _one_batch),
        (_LSTM, "16", _one_batch),
    ),
    _kind(
        "rows drawn together",
        # A wrong term of the loss: it pulls rows to a point, which shrinks them, by gradients that have grown.
        "entropy_collapse rank_collapse stable_rank_drop norm_decay update_surge",
        *((_WORDS, f"embedding, {strength}", _drawn_together("embed.weight", strength)) for strength in (0.02, 0.1)),
        (_MLP_SGD, "first, 0.02", _drawn_together("1.weight", 0.02)),
        (_SMALL, "feed-forward, 0.01", _drawn_together(f"{_FF}1.weight", 0.01)),
    ),
)
