"""Count alerts in healthy trainings by less usual recipes, on which no threshold was set.

    python -m tests.benchmarks.recipes [--seed 200] [--runs 3] [--only PATTERN]

`false_alarms.py` has networks and optimizers; this script has what scripts do besides: they train twice per step,
normalise, freeze, average, prune and swap weights. Each recipe trains a small network on digits from other seeds and
widths, with all rules on. A line has the held-back loss before and after, and the alerts from severity warning on.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

import esdmon
from esdmon import Monitor
from tests.benchmarks.healthy import TASKS, Task, batches, classify, mlp, small_images

_STEPS, _EVERY = 1200, 20
_WIDTHS = ((256, 256, 128, 10), (256, 192, 96, 10), (256, 128, 128, 128, 10), (256, 384, 64, 10))
_SMALL = ((64, 128, 64, 10), (64, 64, 64, 10), (64, 96, 96, 10))
_DENSE = 400  # steps before weights are pruned


@dataclass
class Loop:
    """A training loop that a recipe changes."""

    seed: int
    task: Task
    optimizer: Optimizer
    steps: int = _STEPS
    before: list[Callable[[int], object]] = field(default_factory=list)
    """Done before a step, with its number."""
    after: list[Callable[[int], object]] = field(default_factory=list)
    backward: Callable[[Tensor, Tensor], None] | None = None
    """Computes the gradients of a batch in another way."""

    @property
    def model(self) -> nn.Module:
        return self.task.model

    @property
    def linear(self) -> list[nn.Linear]:
        return [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)]

    @property
    def weights(self) -> list[Tensor]:
        return list(self.model.parameters())

    def run(self) -> Monitor:
        """Train, watched; the monitor is closed."""
        with esdmon.watch(
            self.model, self.optimizer, every=_EVERY, budget=None, mode="sync", sinks=[], layers=self.task.layers
        ) as monitor:
            for step, batch in enumerate(batches(self.task.data, 32, self.steps, seed=self.seed)):
                _do(self.before, step)
                self.optimizer.zero_grad()
                (self.backward or self.gradients)(*batch)
                self.optimizer.step()
                _do(self.after, step)
        return monitor

    def gradients(self, inputs: Tensor, targets: Tensor) -> None:
        """Compute the gradients of a batch."""
        self.task.loss(self.model, inputs, targets).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _do(actions: Iterable[Callable[[int], object]], step: int) -> None:
    for action in actions:
        action(step)


def _loop(seed: int, *, small: bool = False, lr: float = 1.0, change: Callable[[nn.Sequential], object] = id) -> Loop:
    """Return a loop over digits; the width, SGD or AdamW depend on the seed."""
    widths = (_SMALL if small else _WIDTHS)[seed // 2 % (len(_SMALL) if small else len(_WIDTHS))]
    model = mlp(*widths)
    change(model)
    whole = TASKS["MLP"]()
    data, held_back = small_images() if small else (whole.data, whole.held_back)
    faster = 3 * lr if small else lr
    if seed % 2:
        optimizer: Optimizer = AdamW(model.parameters(), lr=1e-3 * faster, weight_decay=0.1)
    else:
        optimizer = SGD(model.parameters(), lr=0.02 * faster, momentum=0.9, weight_decay=5e-4)
    return Loop(seed, Task(model, data, held_back, classify), optimizer)


def usual(seed: int, *, small: bool = False) -> Loop:
    return _loop(seed, small=small)


def sharpness_aware(seed: int, *, small: bool = False, radius: float = 0.1) -> Loop:
    """P. Foret and others, "Sharpness-aware minimization" (ICLR 2021)."""
    loop = _loop(seed, small=small)

    def backward(inputs: Tensor, targets: Tensor) -> None:
        loop.gradients(inputs, targets)
        gradients = [weight.grad for weight in loop.weights if weight.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        up = [radius * gradient / norm for gradient in gradients]
        with torch.no_grad():
            for weight, way in zip(loop.weights, up, strict=True):
                weight.add_(way)
        loop.optimizer.zero_grad()
        loop.gradients(inputs, targets)
        with torch.no_grad():
            for weight, way in zip(loop.weights, up, strict=True):
                weight.sub_(way)

    loop.backward = backward
    return loop


def _parametrized(how: Callable[[nn.Linear], object], *, head: bool = True) -> Callable[[nn.Sequential], None]:
    def change(model: nn.Sequential) -> None:
        for layer in [layer for layer in model if isinstance(layer, nn.Linear)][: None if head else -1]:
            how(layer)

    return change


def spectral_norms(seed: int, *, small: bool = False) -> Loop:
    """All layers, which bounds the logits: the gradients never vanish."""
    return _loop(seed, small=small, lr=2.0, change=_parametrized(parametrizations.spectral_norm))


def hidden_spectral_norms(seed: int) -> Loop:
    return _loop(seed, small=True, change=_parametrized(parametrizations.spectral_norm, head=False))


class _Rounded(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        """Round to four bits, with the gradient of the identity."""
        unit = weight.detach().abs().max() / 7
        return weight + (torch.round(weight / unit) * unit - weight).detach()


def quantisation_aware(seed: int) -> Loop:
    def rounded(layer: nn.Linear) -> None:
        parametrize.register_parametrization(layer, "weight", _Rounded())

    return _loop(seed, change=_parametrized(rounded))


def warm_restarts(seed: int) -> Loop:
    loop = _loop(seed, lr=3.0)
    schedule = CosineAnnealingWarmRestarts(loop.optimizer, 200, 2)
    loop.after.append(lambda _step: schedule.step())
    return loop


def unfrozen_in_turn(seed: int) -> Loop:
    """From the head down, a layer every 300 steps."""
    loop = _loop(seed)
    for layer in loop.linear[:-1]:
        layer.requires_grad_(requires_grad=False)

    def unfreeze(step: int) -> None:
        for layer in loop.linear[max(0, len(loop.linear) - 1 - step // 300) :]:
            layer.requires_grad_(requires_grad=True)

    loop.before.append(unfreeze)
    return loop


def distilled(seed: int) -> Loop:
    """From a teacher, at a temperature of 4."""
    teacher = _loop(0)
    teacher.steps = 400
    teacher.run()
    loop = _loop(seed, lr=0.5)

    def loss(model: nn.Module, inputs: Tensor, _targets: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = functional.softmax(teacher.model(inputs) / 4, -1)
        found = functional.log_softmax(model(inputs) / 4, -1)
        return 16 * functional.kl_div(found, wanted, reduction="batchmean")

    loop.task = Task(loop.model, loop.task.data, loop.task.held_back, loss)
    return loop


def _copy(weights: Iterable[Tensor]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def _put(weights: Iterable[Tensor], values: Iterable[Tensor], share: float = 1.0) -> None:
    """Move weights to others, or a part of the way."""
    for weight, value in zip(weights, values, strict=True):
        weight.lerp_(value, share)


def swapped_for_their_average(seed: int) -> Loop:
    """Every 50 steps, to evaluate, and back."""
    loop = _loop(seed)
    average = _copy(loop.weights)

    @torch.no_grad()
    def swap(step: int) -> None:
        _put(average, loop.weights, 0.01)
        if step % 50 == 49:
            kept = _copy(loop.weights)
            _put(loop.weights, average)
            loop.task.held_back_loss()
            _put(loop.weights, kept)

    loop.after.append(swap)
    return loop


def pruned_in_turn(seed: int) -> Loop:
    """The smallest elements of hidden layers, up to 90 %."""
    loop = _loop(seed)
    masks: dict[nn.Linear, Tensor] = {}

    @torch.no_grad()
    def prune(step: int) -> None:
        share = 0.9 * (1 - (1 - min(1.0, (step - _DENSE) / 600)) ** 3)
        for layer in loop.linear[:-1]:
            if step > _DENSE and step % 50 == 0:
                size = layer.weight.abs()
                masks[layer] = (size > size.flatten().kthvalue(int(share * size.numel())).values).float()
            if layer in masks:
                layer.weight.mul_(masks[layer])

    loop.after.append(prune)
    return loop


def with_noise_in_the_gradient(seed: int) -> Loop:
    """Clipped and with noise added, as for differential privacy."""
    loop = _loop(seed)

    def spoil(inputs: Tensor, targets: Tensor) -> None:
        loop.gradients(inputs, targets)
        nn.utils.clip_grad_norm_(loop.weights, 1.0)
        for weight in loop.weights:
            assert weight.grad is not None
            weight.grad += 0.002 * torch.randn_like(weight)

    loop.backward = spoil
    return loop


class _Experts(nn.Module):
    """Four experts, of which a router chooses one for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.router, self.head = nn.Linear(256, 128), nn.Linear(128, 4), nn.Linear(128, 10)
        self.experts = nn.ModuleList(mlp(128, 160, 128) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        """Compute (batch, 10)."""
        x = functional.relu(self.first(images.flatten(1)))
        chances = self.router(x).softmax(-1)
        chosen = chances.argmax(-1)
        weights = chances * functional.one_hot(chosen, 4)
        for weight, expert in zip(weights.T, self.experts, strict=True):
            x = x + weight[:, None] * expert(x)
        out: Tensor = self.head(x)
        return out


def experts(seed: int) -> Loop:
    whole, model = TASKS["MLP"](), _Experts()
    optimizer = AdamW(model.parameters(), lr=1e-3)
    return Loop(seed, Task(model, whole.data, whole.held_back, classify), optimizer)


def rewound(seed: int) -> Loop:
    """All weights are set back to their start after 600 steps, as for lottery tickets."""
    loop = _loop(seed)
    start = _copy(loop.weights)

    @torch.no_grad()
    def rewind(step: int) -> None:
        if step == _STEPS // 2:
            _put(loop.weights, start)
            loop.optimizer.state.clear()

    loop.after.append(rewind)
    return loop


RECIPES: dict[str, Callable[[int], Loop]] = {
    "usual": usual,
    "usual, 64 inputs": lambda seed: usual(seed, small=True),
    "sharpness-aware": sharpness_aware,
    "sharpness-aware, 64 inputs": lambda seed: sharpness_aware(seed, small=True),
    "spectral norms": spectral_norms,
    "spectral norms, 64 inputs": lambda seed: spectral_norms(seed, small=True),
    "spectral norms of hidden layers, 64 inputs": hidden_spectral_norms,
    "quantisation-aware": quantisation_aware,
    "warm restarts": warm_restarts,
    "unfrozen in turn": unfrozen_in_turn,
    "distilled": distilled,
    "swapped for their average": swapped_for_their_average,
    "pruned in turn": pruned_in_turn,
    "noise in the gradient": with_noise_in_the_gradient,
    "experts": experts,
    "rewound": rewound,
}


def main() -> None:
    """Print a line for each recipe."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=200)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="*", help="names of recipes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| recipe | runs | loss before → after | warnings | notices |\n|---|---|---|---|---|")
    for name, make in RECIPES.items():
        if not fnmatch(name, options.only):
            continue
        losses, loud, quiet = [], Counter[str](), Counter[str]()
        for seed in range(options.seed, options.seed + options.runs):
            torch.manual_seed(seed)
            loop = make(seed)
            before = loop.task.held_back_loss()
            fired = [alert for alert in loop.run().alerts if alert.state == "firing"]
            losses.append((before, loop.task.held_back_loss()))
            loud.update({alert.rule for alert in fired if alert.severity != "info"})
            quiet.update({alert.rule for alert in fired if alert.severity == "info"})
        before, after = (math.fsum(each) / len(losses) for each in zip(*losses, strict=True))
        cells = [", ".join(f"`{rule}` {runs}" for rule, runs in found.items()) or "none" for found in (loud, quiet)]
        print(f"| {name} | {len(losses)} | {before:.2f} → {after:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
