"""The record of one matrix at one step: `LayerReport`, with its spectrum as a histogram, `Esd`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

from esdmon.records.values import Record, jsonable
from esdmon.spectrum import Phase

Status: TypeAlias = Literal["ok", "skipped", "degenerate", "nonfinite", "failed"]

MOVED = 1e-6
"""‖ΔW‖/‖W‖ above which a weight has moved: ten times the rounding of float32. Our choice."""


@dataclass(frozen=True, slots=True)
class Esd:
    """The eigenvalues of a matrix as a histogram of log₁₀ λ: bins of equal width from `low` to `high`."""

    low: float
    high: float
    counts: tuple[int, ...]
    zeros: int = 0
    """Eigenvalues that are zero, which have no logarithm."""

    @property
    def total(self) -> int:
        """All eigenvalues."""
        return sum(self.counts) + self.zeros

    @property
    def edges(self) -> list[float]:
        """log₁₀ λ at the borders of the bins, one more than there are bins."""
        step = (self.high - self.low) / len(self.counts)
        return [self.low + k * step for k in range(len(self.counts) + 1)]

    @property
    def centres(self) -> list[float]:
        """λ in the middle of each bin, on the logarithmic axis."""
        return [10 ** ((a + b) / 2) for a, b in pairwise(self.edges)]

    @property
    def widths(self) -> list[float]:
        """Width of each bin, in λ."""
        return [10**b - 10**a for a, b in pairwise(self.edges)]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One matrix at one step."""

    name: str
    """The module's canonical name, or the parameter's where it is no `weight`; `/part` where it holds several."""
    status: Status
    """Anything but `ok` comes with a reason, and without measures."""
    step: int
    """Optimizer steps taken when the weight was read."""
    reason: str = ""
    view: str = "weight"
    """What was read: weight, base, lora-delta, merged, or difference from a reference."""
    aliases: tuple[str, ...] = ()
    """The other names of a weight that is tied."""
    N: int = 0
    """The longer side, zero rows and columns left out."""
    M: int = 0
    """The shorter side."""
    slices: int = 1
    """Matrices of that shape pooled: the kernel positions of a convolution."""
    n_parameters: int = 0
    dtype: str = ""
    precision: str = ""
    """What the eigenvalues were computed in."""
    host_step: int | None = None
    """The host's own step (a Trainer's), where there is a host."""
    emitted_step: int | None = None
    """The step at which this was written, where that is later than `step`."""
    trainable: bool = True
    in_optimizer: bool | None = None
    """Whether the optimizer holds it; None where the monitor was given none."""
    update_ratio: float = math.nan
    """‖ΔW‖/‖W‖ from the reading before to this one, on a sample of the elements; at the first from when watching began,
    and infinite for a weight that was zero. NaN without a monitor, and where nothing is known of before."""
    drift: float = math.nan
    """The same from this reading to when the weight was looked at last; NaN where it was not looked at since."""
    unchanged: bool = False
    """Repeated from an earlier step, since the weight has hardly moved since: by at most 1e-3 of its norm."""
    phase: Phase = Phase.UNCLASSIFIED
    phase_confidence: float = 0.0
    """0 on a border between phases, 1 far from any."""
    explanation: str = ""
    """What the phase rests on."""
    alpha_is_meaningful: bool = False
    """False: alpha describes the edge of noise."""
    over_regularized: bool = False
    measures: Mapping[str, float] = field(default_factory=dict)
    """By name; NaN where undefined."""
    nulls: Mapping[str, float] = field(default_factory=dict)
    """What pure noise of the same shape would give."""
    esd: Esd | None = None
    """The spectrum itself, as a histogram; in no table and no JSON line."""

    @property
    def Q(self) -> float:  # noqa: N802 -- the field's letter
        """N/M >= 1."""
        return self.N / self.M if self.M else math.nan

    @property
    def n_eigenvalues(self) -> int:
        """M to a slice."""
        return self.M * self.slices

    @property
    def last_move(self) -> float:
        """‖ΔW‖/‖W‖ of the latest time that is known: since this reading, or else before it."""
        return self.update_ratio if math.isnan(self.drift) else self.drift

    @property
    def stands_still(self) -> bool:
        """Whether it has not moved of late, though the optimizer holds it."""
        return self.status == "ok" and bool(self.in_optimizer) and self.last_move <= MOVED

    @property
    def age(self) -> int:
        """Steps between the reading and its being written."""
        return 0 if self.emitted_step is None else self.emitted_step - self.step

    def to_record(self) -> Record:
        """One flat JSON object; what is undefined is None."""
        own = {
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "view": self.view,
            "aliases": list(self.aliases),
            "N": self.N,
            "M": self.M,
            "Q": self.Q,
            "slices": self.slices,
            "n_eigenvalues": self.n_eigenvalues,
            "n_parameters": self.n_parameters,
            "dtype": self.dtype,
            "precision": self.precision,
            "step": self.step,
            "host_step": self.host_step,
            "emitted_step": self.step if self.emitted_step is None else self.emitted_step,
            "age": self.age,
            "trainable": self.trainable,
            "in_optimizer": self.in_optimizer,
            "update_ratio": self.update_ratio,
            "unchanged": self.unchanged,
            "phase": self.phase.value,
            "phase_code": self.phase.code,
            "phase_confidence": self.phase_confidence,
            "explanation": self.explanation,
            "alpha_is_meaningful": self.alpha_is_meaningful,
            "over_regularized": self.over_regularized,
        }
        nulls = {f"{name}_null": value for name, value in self.nulls.items()}
        return {key: jsonable(value) for key, value in (own | dict(self.measures) | nulls).items()}
