"""Real trainings that go wrong in one way, and then have the cause taken away.

Each runs through three stretches of steps: well, with the fault, and well again. The same training without the fault is
its healthy twin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

import esdmon
from esdmon.sinks import Sink
from tests.alerts import faults
from tests.alerts.trainings import Adapted, Computed, Decayed, Digits, InGroups, Text, Training

BEGINS, ENDS, LAST = 100, 160, 260
"""Steps after which the fault begins, ends, and training is over."""

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


_ALL = ("fc1", "fc2", "fc3")
SCENARIOS = (
    Scenario(
        "learning rate far too high",
        "norm_explosion",
        ("fc1", "fc2", "fc3"),
        faults.high_learning_rate,
        2,
        severity="error",
    ),
    Scenario(
        "learning rate far too high from the start",
        "norm_explosion",
        _ALL,
        faults.high_learning_rate_from_the_start,
        within=2,
        stretches=(0, 60, 160),
        severity="error",
    ),
    Scenario(
        "a learning rate that rises slowly",
        "update_surge",
        _ALL,
        faults.rising_learning_rate,
        within=11,
        stretches=(150, 230, 340),
        then=("norm_explosion",),
    ),
    Scenario(
        "weight decay far too strong", "norm_decay", _ALL, faults.strong_decay, within=3, then=("scale_collapse",)
    ),
    Scenario(
        "weight decay far too strong for one layer",
        "norm_decay",
        ("fc3",),
        faults.strong_decay_of_the_last,
        within=6,
        make=InGroups,
        well=Digits,
        then=("scale_collapse",),
    ),
    Scenario(
        "weight decay too strong for long",
        "norm_decay",
        ("fc1", "fc2"),
        faults.decay_that_lasts,
        within=6,
        stretches=(100, 1000, 1200),
        every=10,
        then=("rank_collapse",),
        long=True,
    ),
    Scenario("a weight that is scaled down", "scale_collapse", ("fc1",), faults.scaled_down, within=3),
    Scenario(
        "batches of one", "update_surge", ("fc1", "fc2"), faults.single_examples, within=4, then=("norm_explosion",)
    ),
    Scenario(
        "batches of one, trained on for too long",
        "over_regularized",
        ("fc1",),
        faults.too_long,
        within=34,  # all of the fault: with AVX-512 the training takes another way, and the alert comes after 33
        then=("layer_reset",),  # which is right where the rewound layer had moved that far
        make=lambda: Digits(lr=0.05, momentum=0.0, batch_size=1),
        well=Digits,
        stretches=(600, 4000, 5500),
        every=100,
        long=True,
    ),
    Scenario("a compression left on", "rank_collapse", ("fc1",), faults.compressed, severity="error"),
    Scenario("a batch of NaN", "non_finite", _ALL, faults.bad_batch, within=1, severity="error"),
    Scenario("a layer cut off from the loss", "dead_layer", ("fc1",), faults.cut_off),
    Scenario(
        "a gradient of zero, under weight decay",
        "dead_layer",
        ("fc1",),
        faults.without_gradient,
        within=16,  # the momentum of AdamW goes on for some fifty steps
        make=Decayed,
        well=Decayed,
        stretches=(100, 220, 240),
    ),
    Scenario("a layer frozen in the optimizer", "dead_layer", ("fc2",), faults.frozen, severity="info"),
    Scenario(
        "an adapter that outweighs its base",
        "adapter_growth",
        ("fc1/lora.default",),
        faults.adapter_rewarded,
        within=11,
        make=Adapted,
        severity="info",
    ),
    Scenario("units that die", "dead_units", ("fc1",), faults.dying_units, within=4),
    Scenario("a mean that is not zero", "correlation_trap", ("fc1",), faults.shifted, within=3),
    Scenario("a huge element", "correlation_trap", ("fc2",), faults.huge_element, within=3),
    Scenario(
        "an embedding drawn together",
        "norm_decay",
        ("embed",),
        faults.drawn_together,
        within=4,
        make=Text,
        stretches=(100, 140, 240),
        watched=("*",),
    ),
    Scenario("directions that die out", "entropy_collapse", ("fc1",), faults.narrowed, within=3),
    Scenario("one direction rewarded", "stable_rank_drop", ("fc2",), faults.amplified, within=12),
    Scenario("a layer reinitialised", "layer_reset", ("fc1",), faults.reinitialised, within=1),
    Scenario(
        "a layer reinitialised by larger values",
        "layer_reset",
        ("fc2",),
        faults.reinitialised_larger,
        within=1,
        stretches=(100, 110, 210),
    ),
    Scenario(
        "a layer set back to its start", "layer_reset", ("fc1",), faults.set_back, within=1, stretches=(100, 110, 210)
    ),
    Scenario(
        "a computed weight set back to its start",
        "phase_regression",
        ("fc1",),
        faults.begun_again,
        within=7,
        make=Computed,
        well=Digits,
    ),
)
