"""Faults of a training, each a context: in force while it is entered, and taken back afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from esdmon.cli.digits import batches
from tests.alerts.trainings import Adapted, Digits, InGroups, Text, Training


@contextmanager
def restored(training: Training) -> Iterator[None]:
    """Afterwards the model and the optimizer are what they were before, as from a checkpoint."""
    before = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    yield
    training.model.load_state_dict(before[0])
    training.optimizer.load_state_dict(before[1])


@contextmanager
def _after_each(training: Training, change: Callable[[], object], *, steps: int = 1) -> Iterator[None]:
    """Do something after the first of every so many steps."""
    number = count()

    def after() -> None:
        if next(number) % steps == 0:
            change()

    with restored(training):
        training.after = after
        yield
        training.after = None


@contextmanager
def _options(training: Training, **changed: float) -> Iterator[None]:
    (group,) = training.optimizer.param_groups
    before = {name: group[name] for name in changed}
    group |= changed
    yield
    group |= before


@contextmanager
def high_learning_rate(training: Digits) -> Iterator[None]:
    with restored(training), _options(training, lr=2.0):
        yield


@contextmanager
def high_learning_rate_from_the_start(training: Digits) -> Iterator[None]:
    with restored(training), _options(training, lr=3.0):
        yield


def rising_learning_rate(training: Digits) -> AbstractContextManager[None]:
    """By 4 % after each step, as by a schedule that multiplies the wrong value."""

    def rise() -> None:
        training.optimizer.param_groups[0]["lr"] *= 1.04

    return _after_each(training, rise)


@contextmanager
def strong_decay(training: Digits) -> Iterator[None]:
    with restored(training), _options(training, weight_decay=0.5):
        yield


@contextmanager
def strong_decay_of_the_last(training: InGroups) -> Iterator[None]:
    """Its gradients grow within tens of steps until they balance it."""
    with restored(training):
        training.optimizer.param_groups[1]["weight_decay"] = 0.25
        yield


@contextmanager
def decay_that_lasts(training: Digits) -> Iterator[None]:
    """Weaker, so that what is learned stays, and all else dies out."""
    with restored(training), _options(training, weight_decay=0.05):
        yield


@contextmanager
def too_long(training: Digits) -> Iterator[None]:
    """Nothing but that it goes on; then the layer is rewound, and trained on with larger batches and smaller steps."""
    before = training.weight("fc1").detach().clone()
    yield
    training.weight("fc1").data.copy_(before)
    training.batches = batches(len(training.images), 32, seed=0)
    training.optimizer.param_groups[0]["lr"] = 0.01


def compressed(training: Digits) -> AbstractContextManager[None]:
    """A layer is cut to its 60 strongest directions after each step, by a compression that was left on."""

    def cut() -> None:
        weight = training.weight("fc1").data
        left, strengths, right = torch.linalg.svd(weight, full_matrices=False)
        weight.copy_(left[:, :60] * strengths[:60] @ right[:60])

    return _after_each(training, cut)


@contextmanager
def drawn_together(training: Text) -> Iterator[None]:
    """All rows of the embedding, to one point."""
    with restored(training):
        rows, point = training.weight("embed"), 0.2 * torch.randn(80)
        training.extra = lambda: 0.1 * (rows - point).square().sum()
        yield
        training.extra = None


@contextmanager
def bad_batch(training: Digits) -> Iterator[None]:
    with restored(training):
        training.images = training.images.clone()
        good = training.images[0].clone()
        training.images[0] = math.nan
        training.batches = iter([torch.arange(32), *(next(training.batches) for _ in range(200))])
        yield
        training.images[0] = good


@contextmanager
def cut_off(training: Digits) -> Iterator[None]:
    training.cut_off = "fc1"
    yield
    training.cut_off = ""


@contextmanager
def without_gradient(training: Digits) -> Iterator[None]:
    hook = training.weight("fc1").register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
    yield
    hook.remove()


@contextmanager
def frozen(training: Digits) -> Iterator[None]:
    training.weight("fc2").requires_grad = False
    yield
    training.weight("fc2").requires_grad = True


@contextmanager
def _added(training: Training, name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    weight = training.weight(name).data
    added = change(weight) - weight
    weight += added
    yield
    weight -= added


def shifted(training: Training) -> AbstractContextManager[None]:
    """A mean of thrice the strength at which it shows."""
    return _added(training, "fc1", lambda w: w + 3 * w.std() * w.numel() ** -0.25)


def huge_element(training: Training) -> AbstractContextManager[None]:
    def change(weight: Tensor) -> Tensor:
        changed = weight.clone()
        changed[3, 4] += 3 * weight.std() * weight.numel() ** 0.25
        return changed

    return _added(training, "fc2", change)


@contextmanager
def amplified(training: Digits) -> Iterator[None]:
    """A wrong term of the loss that rewards one direction."""
    with restored(training):
        weight = training.weight("fc2")
        left, right = (torch.randn(n) / n**0.5 for n in weight.shape)
        training.extra = lambda: -0.3 * (left @ training.weight("fc2") @ right)
        yield
        training.extra = None


def scaled_down(training: Digits) -> AbstractContextManager[None]:
    """After each step, as by a conversion that loses the scale."""
    weight = training.weight("fc1")
    small = 0.03 * weight.detach()
    return _after_each(training, lambda: weight.data.copy_(small))


@contextmanager
def single_examples(training: Digits) -> Iterator[None]:
    """Batches of one at the learning rate of larger ones."""
    with restored(training):
        training.batches = batches(len(training.images), 1, seed=0)
        yield
        training.batches = batches(len(training.images), 32, seed=0)


def narrowed(training: Digits) -> AbstractContextManager[None]:
    """A weight keeps its norm, and a tenth of all directions but thirty."""
    weight = training.weight("fc1")
    basis = torch.linalg.qr(torch.randn(weight.shape[1], 30)).Q
    narrow = torch.lerp(weight.detach(), weight.detach() @ basis @ basis.T, 0.9)
    narrow *= weight.detach().norm() / narrow.norm()
    return _after_each(training, lambda: weight.data.copy_(narrow))


@contextmanager
def adapter_rewarded(training: Adapted) -> Iterator[None]:
    """A wrong term of the loss that rewards what the adapter adds."""
    with restored(training):
        adapted: Any = training.model["fc1"]
        training.extra = lambda: -0.1 * adapted.get_delta_weight("default").norm()
        yield
        training.extra = None


def dying_units(training: Digits) -> AbstractContextManager[None]:
    """Every fifth unit never opens, and its weights have decayed to nothing."""
    weight, bias = (training.model.get_parameter(f"fc1.{name}") for name in ("weight", "bias"))

    def die() -> None:
        training.optimizer.state[weight]["momentum_buffer"][::5] = 0
        weight.data[::5], bias.data[::5] = 0, -1

    return _after_each(training, die)


def set_back(training: Digits) -> AbstractContextManager[None]:
    """To its initial values, every ten steps."""
    return _after_each(training, lambda: training.weight("fc1").data.copy_(training.initial), steps=10)


@contextmanager
def begun_again(training: Digits) -> Iterator[None]:
    """Set back as often, and then trained from there."""
    weight, numbers = training.weight("fc1").data, count()
    training.after = lambda: weight.copy_(training.initial) if next(numbers) % 10 == 0 else None
    yield
    training.after = None


def reinitialised(training: Digits) -> AbstractContextManager[None]:
    """Initialised by mistake, every ten steps."""
    return _after_each(training, lambda: nn.init.xavier_normal_(training.weight("fc1").data), steps=10)


def reinitialised_larger(training: Digits) -> AbstractContextManager[None]:
    """Initialised once, for a network of another scale."""
    weight = training.weight("fc2").data
    deviation = 5 * float(weight.std())
    return _after_each(training, lambda: nn.init.normal_(weight, std=deviation), steps=100)
