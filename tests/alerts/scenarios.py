"""Real trainings that go wrong in one way, and then have the cause taken away.

Each runs through three stretches of steps: well, with the fault, and well again. The same training without the fault is
its healthy twin.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pydoc_data.topics import topics
from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import esdmon
from esdmon.cli.digits import batches, digits
from esdmon.sinks import Sink

_TRAINED_ON = 1400  # of the 1797 digits
BEGINS, ENDS, LAST = 100, 160, 260
"""Steps after which the fault begins, ends, and training is over."""


class Training:
    """What a fault may meddle with."""

    model: nn.ModuleDict
    optimizer: torch.optim.Optimizer
    extra: Callable[[], Tensor] | None = None
    """A term of the loss that ought not to be there."""
    after: Callable[[], object] | None = None
    """Done after each step."""

    def loss(self) -> Tensor:
        raise NotImplementedError

    def weight(self, name: str) -> Tensor:
        return self.model.get_parameter(f"{name}.weight")

    def step(self) -> None:
        loss = self.loss()
        if self.extra is not None:
            loss = loss + self.extra()
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.optimizer.step()
        if self.after is not None:
            self.after()


class Digits(Training):
    """Three layers that classify digits."""

    def __init__(self, *, lr: float = 0.02, momentum: float = 0.9, batch_size: int = 32) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"fc1": nn.Linear(256, 192), "fc2": nn.Linear(192, 128), "fc3": nn.Linear(128, 10)})
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum)
        images, labels = digits()
        self.images, self.labels = images[:_TRAINED_ON].flatten(1), labels[:_TRAINED_ON]
        self.held_back = images[_TRAINED_ON:].flatten(1), labels[_TRAINED_ON:]
        self.cut_off = ""
        """A layer whose output is detached."""
        self.batches = batches(len(self.images), batch_size, seed=0)
        self.initial = self.weight("fc1").detach().clone()

    def loss(self) -> Tensor:
        index = next(self.batches)
        return functional.cross_entropy(self.forward(self.images[index]), self.labels[index])

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.model.items():
            x = layer(x) if name == "fc3" else functional.relu(layer(x))
            x = x.detach() if name == self.cut_off else x
        return x

    def accuracy(self) -> float:
        """On digits that are not trained on."""
        images, labels = self.held_back
        with torch.no_grad():
            return float((self.forward(images).argmax(1) == labels).float().mean())


class InGroups(Digits):
    """The same layers, with the last weight in a group of its own."""

    def __init__(self) -> None:
        super().__init__()
        last = self.weight("fc3")
        others = [parameter for parameter in self.model.parameters() if parameter is not last]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [last]}]
        self.optimizer = torch.optim.SGD(groups, lr=0.02, momentum=0.9)


class Decayed(Digits):
    """The same layers, with AdamW and its weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.1)


class Computed(Digits):
    """The same layers, but the first weight is the output of a module, of which single steps are not sampled."""

    def __init__(self) -> None:
        super().__init__()
        parametrize.register_parametrization(self.model["fc1"], "weight", nn.Identity())

    def weight(self, name: str) -> Tensor:
        if name == "fc1" and hasattr(self.model["fc1"], "parametrizations"):
            return self.model.get_parameter("fc1.parametrizations.weight.original")
        return super().weight(name)


class Adapted(Digits):
    """The same layers, trained, and then fine-tuned by adapters on digits that are shifted by a pixel."""

    def __init__(self) -> None:
        super().__init__()
        for _ in range(200):
            self.step()
        self.images = self.images.roll(1, 1)
        adapters = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["fc1", "fc2"])
        peft.inject_adapter_in_model(adapters, self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = "lora" in name
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.02, momentum=0.9)


class Text(Training):
    """The next character by the eight before it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        text = "".join(topics.values())[:100_000]
        known = {character: number for number, character in enumerate(sorted(set(text)))}
        self.windows = torch.tensor([known[character] for character in text]).unfold(0, 9, 1)
        self.model = nn.ModuleDict(
            {
                "embed": nn.Embedding(len(known), 80),
                "hidden": nn.Linear(8 * 80, 128),
                "head": nn.Linear(128, len(known)),
            }
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.3)
        self.batches = batches(len(self.windows), 32, seed=0)

    def loss(self) -> Tensor:
        window = self.windows[next(self.batches)]
        x = self.model["embed"](window[:, :8]).flatten(1)
        return functional.cross_entropy(self.model["head"](functional.relu(self.model["hidden"](x))), window[:, 8])


Fault = Callable[[Any], AbstractContextManager[None]]
"""In force while it is entered."""


@dataclass(frozen=True)
class Scenario:
    """A fault, and what is to be said of it."""

    name: str
    rule: str
    layers: Sequence[str]
    """Those that are to be named, and no other."""
    fault: Fault
    within: int = 5
    """Readings after the fault in which the alert fires at the latest."""
    make: Callable[[], Training] = Digits
    well: Callable[[], Training] | None = None
    """The healthy twin, where the fault is in how it trains from the start."""
    every: int = 5
    """Steps between readings."""
    stretches: tuple[int, int, int] = (BEGINS, ENDS, LAST)
    severity: str = "warning"
    then: tuple[str, ...] = ()
    """Rules that may follow in the same layers, as it gets worse."""
    watched: tuple[str, ...] | None = None
    long: bool = False
    """Whether it trains for long: its test is a slow one, and only `tests.benchmarks.scenarios` trains its twin."""

    def run(self, *, faulty: bool, sinks: Sequence[str | Sink] = ()) -> esdmon.Monitor:
        """Train, watched with all rules; the monitor is closed."""
        torch.set_num_threads(1)
        training = (self.make if faulty else self.well or self.make)()
        begins, ends, last = self.stretches
        with esdmon.watch(
            training.model,
            training.optimizer,
            every=self.every,
            budget=None,
            mode="sync",
            sinks=sinks,
            layers=self.watched,
        ) as monitor:
            for _ in range(begins):
                training.step()
            with self.fault(training) if faulty else nullcontext():
                for _ in range(begins, ends):
                    training.step()
            for _ in range(ends, last):
                training.step()
        return monitor


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


_ALL = ("fc1", "fc2", "fc3")
SCENARIOS = (
    Scenario(
        "learning rate far too high", "norm_explosion", ("fc1", "fc2", "fc3"), high_learning_rate, 2, severity="error"
    ),
    Scenario(
        "learning rate far too high from the start",
        "norm_explosion",
        _ALL,
        high_learning_rate_from_the_start,
        within=2,
        stretches=(0, 60, 160),
        severity="error",
    ),
    Scenario("weight decay far too strong", "norm_decay", _ALL, strong_decay, within=3, then=("scale_collapse",)),
    Scenario(
        "weight decay far too strong for one layer",
        "norm_decay",
        ("fc3",),
        strong_decay_of_the_last,
        within=6,
        make=InGroups,
        well=Digits,
        then=("scale_collapse",),
    ),
    Scenario(
        "weight decay too strong for long",
        "norm_decay",
        ("fc1", "fc2"),
        decay_that_lasts,
        within=6,
        stretches=(100, 1000, 1200),
        every=10,
        then=("rank_collapse",),
        long=True,
    ),
    Scenario("a weight that is scaled down", "scale_collapse", ("fc1",), scaled_down, within=3),
    Scenario("batches of one", "update_surge", ("fc1", "fc2"), single_examples, within=4, then=("norm_explosion",)),
    Scenario(
        "batches of one, trained on for too long",
        "over_regularized",
        ("fc1",),
        too_long,
        within=34,  # all of the fault: with AVX-512 the training takes another way, and the alert comes after 33
        then=("layer_reset",),  # which is right where the rewound layer had moved that far
        make=lambda: Digits(lr=0.05, momentum=0.0, batch_size=1),
        well=Digits,
        stretches=(600, 4000, 5500),
        every=100,
        long=True,
    ),
    Scenario("a compression left on", "rank_collapse", ("fc1",), compressed, severity="error"),
    Scenario("a batch of NaN", "non_finite", _ALL, bad_batch, within=1, severity="error"),
    Scenario("a layer cut off from the loss", "dead_layer", ("fc1",), cut_off),
    Scenario(
        "a gradient of zero, under weight decay",
        "dead_layer",
        ("fc1",),
        without_gradient,
        within=16,  # the momentum of AdamW goes on for some fifty steps
        make=Decayed,
        well=Decayed,
        stretches=(100, 220, 240),
    ),
    Scenario("a layer frozen in the optimizer", "dead_layer", ("fc2",), frozen, severity="info"),
    Scenario(
        "an adapter that outweighs its base",
        "adapter_growth",
        ("fc1/lora.default",),
        adapter_rewarded,
        within=11,
        make=Adapted,
        severity="info",
    ),
    Scenario("units that die", "dead_units", ("fc1",), dying_units, within=4),
    Scenario("a mean that is not zero", "correlation_trap", ("fc1",), shifted, within=3),
    Scenario("a huge element", "correlation_trap", ("fc2",), huge_element, within=3),
    Scenario(
        "an embedding drawn together",
        "norm_decay",
        ("embed",),
        drawn_together,
        within=4,
        make=Text,
        stretches=(100, 140, 240),
        watched=("*",),
    ),
    Scenario("directions that die out", "entropy_collapse", ("fc1",), narrowed, within=3),
    Scenario("one direction rewarded", "stable_rank_drop", ("fc2",), amplified, within=12),
    Scenario("a layer reinitialised", "layer_reset", ("fc1",), reinitialised, within=1),
    Scenario(
        "a layer reinitialised by larger values",
        "layer_reset",
        ("fc2",),
        reinitialised_larger,
        within=1,
        stretches=(100, 110, 210),
    ),
    Scenario("a layer set back to its start", "layer_reset", ("fc1",), set_back, within=1, stretches=(100, 110, 210)),
    Scenario(
        "a computed weight set back to its start",
        "phase_regression",
        ("fc1",),
        begun_again,
        within=7,
        make=Computed,
        well=Digits,
    ),
)
