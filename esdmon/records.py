"""What passes between the floors, to the sinks and to the user: frozen records of numbers and words, never tensors."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from numbers import Integral, Real
from statistics import median
from typing import Any, Literal, TypeAlias

from esdmon.errors import nearest
from esdmon.spectrum import Phase
from esdmon.table import format_table

SCHEMA = 1
"""Version of the records' form; every JSON object carries it."""

Status: TypeAlias = Literal["ok", "skipped", "degenerate", "nonfinite", "failed"]
Severity: TypeAlias = Literal["info", "warning", "error", "critical"]
AlertState: TypeAlias = Literal["pending", "firing", "resolved"]
Record: TypeAlias = dict[str, Any]
"""A flat JSON object."""

MOVED = 1e-6
"""‖ΔW‖/‖W‖ above which a weight has moved: ten times the rounding of float32. Our choice."""
SUMMARISED = ("alpha", "mp_soft_rank", "stable_rank", "matrix_entropy")


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
        return {key: _jsonable(value) for key, value in (own | dict(self.measures) | nulls).items()}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A parameter that is not watched, and why."""

    name: str
    n_parameters: int
    reason: str


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a monitor sees of a model."""

    watched: int
    """Parameters (elements) in the matrices that are read."""
    total: int
    """Parameters of the model."""
    skipped: tuple[Skipped, ...] = ()

    @property
    def share(self) -> float:
        """watched/total, in [0, 1]."""
        return self.watched / self.total if self.total else 0.0

    def __str__(self) -> str:
        """One line, and one for each reason."""
        lines = [f"watching {self.share:.1%} of {self.total:,} parameters"]
        lines += [f"  not {line}" for line in _grouped((skip.reason, skip.name) for skip in self.skipped)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of a model at one step. `print(report)` is the table, `report["name"]` a layer.

    A layer that was not read at this step is there as it was read last: its `step` is that of its weights, its `age`
    the steps since.
    """

    step: int
    layers: tuple[LayerReport, ...]
    coverage: Coverage
    seconds: float = math.nan
    """What the readings of this step took."""
    waiting: tuple[str, ...] = ()
    """Matrices that have not been read yet: their turn comes as the budget allows."""
    overhead: float = math.nan
    """The monitor's share of the run so far."""
    host_step: int | None = None
    """The host's own step (a Trainer's), where there is a host."""
    firing: Mapping[str, int] = field(default_factory=dict)
    """For each alert rule that has fired in the run, in how many layers it does so now."""
    max_tags: int | None = None
    """How many series of layers a chart should be given; None for all. See `esdmon.tags`."""

    def __getitem__(self, name: str) -> LayerReport:
        """The layer of that name; KeyError with the nearest names."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        if name in self.waiting:
            msg = f"{name!r} has not been read yet: its turn comes as the budget allows"
            raise KeyError(msg)
        msg = f"no layer {name!r} in this report.{nearest(str(name), (layer.name for layer in self.layers))}"
        raise KeyError(msg)

    def __contains__(self, name: object) -> bool:
        """Whether there is a layer of that name."""
        return any(layer.name == name for layer in self.layers)

    def __iter__(self) -> Iterator[LayerReport]:
        """The layers, in the model's order."""
        return iter(self.layers)

    def __len__(self) -> int:
        """How many matrices."""
        return len(self.layers)

    @property
    def new(self) -> tuple[LayerReport, ...]:
        """The layers that were read at this step: what a sink has not had yet."""
        return tuple(layer for layer in self.layers if layer.step == self.step)

    @property
    def x(self) -> int:
        """Where it is drawn: the host's step, so that it lies under the host's loss; without a host, `step`."""
        return self.step if self.host_step is None else self.host_step

    @property
    def summary(self) -> dict[str, float]:
        """The model in a few numbers: medians over its layers, layers in each phase, how old that is, what it cost.

        `alpha_median` is over the layers whose alpha is meaningful; a number of no layers is left out.
        """
        ok = [layer for layer in self.layers if layer.status == "ok"]
        numbers: dict[str, float] = {}
        for name in SUMMARISED:
            values = [
                value
                for layer in ok
                if math.isfinite(value := layer.measures.get(name, math.nan))
                and (name != "alpha" or layer.alpha_is_meaningful)
            ]
            if values:
                numbers[f"{name}_median"] = median(values)
        counts = Counter(layer.phase for layer in ok)
        numbers |= {f"layers_{phase.value}": float(counts[phase]) for phase in Phase}
        numbers["layers_not_ok"] = float(len(self.layers) - len(ok))
        numbers["layers_new"] = float(len(self.new))
        numbers["layers_unchanged"] = float(sum(layer.unchanged for layer in self.layers))
        numbers["layers_waiting"] = float(len(self.waiting))
        numbers["alerts_firing"] = float(sum(self.firing.values()))
        numbers |= {f"alert_{rule}": float(count) for rule, count in self.firing.items()}
        numbers["age_max"] = float(max((self.step - layer.step for layer in self.layers), default=0))
        numbers["seconds"] = self.seconds
        numbers["overhead"] = self.overhead
        return numbers

    def to_records(self) -> list[Record]:
        """A flat JSON object for each matrix."""
        return [layer.to_record() for layer in self.layers]

    def to_summary_record(self) -> Record:
        """The summary as a flat JSON object, and the layers that stand still, are frozen, unchanged, or wait."""
        steps = {"step": self.step, "host_step": self.host_step}
        lists = {
            "still": [layer.name for layer in self.layers if layer.stands_still and layer.trainable],
            "frozen": [layer.name for layer in self.layers if layer.stands_still and not layer.trainable],
            "unchanged": [layer.name for layer in self.layers if layer.unchanged],
            "waiting": list(self.waiting),
        }
        return steps | {key: _jsonable(value) for key, value in self.summary.items()} | lists

    def __str__(self) -> str:
        """A table of 80 columns, what alpha in brackets means, and what is not watched."""
        rows = [_row(layer) for layer in self.layers]
        lines = [format_table(["layer", "N × M", "phase", "alpha", "soft rank", "spikes"], rows, left=(0, 2))]
        lines += [f"{layer.name}: {layer.reason}" for layer in self.layers if layer.status != "ok"]
        lines += _grouped(
            (layer.explanation, layer.name)
            for layer in self.layers
            if layer.status == "ok" and layer.phase is Phase.UNCLASSIFIED
        )
        if any(layer.status == "ok" and not layer.alpha_is_meaningful for layer in self.layers):
            lines.append("(alpha) is not told apart from noise")
        lines += self._ages()
        lines.append(f"step {self.step}, {self.coverage}" if self.step else str(self.coverage))
        return "\n".join(lines)

    def _ages(self) -> list[str]:
        """What is not of this step, in a line or two."""
        old = [layer for layer in self.layers if layer.step != self.step]
        lines = []
        if old:
            oldest = min(layer.step for layer in old)
            unchanged = sum(layer.unchanged for layer in old)
            why = [f"{unchanged} unchanged since"] if unchanged else []
            why += [f"{len(old) - unchanged} left for later by budget="] if len(old) > unchanged else []
            lines.append(f"{len(old)} of {len(self.layers)} as read before, from step {oldest} on: {', '.join(why)}")
        if self.waiting:
            more = f" and {len(self.waiting) - 2} more" if len(self.waiting) > 2 else ""
            lines.append(f"not read yet: {', '.join(self.waiting[:2])}{more}")
        return lines


@dataclass(frozen=True, slots=True)
class Alert:
    """Something that a rule found in the readings."""

    id: str
    """The same for one fault from its first firing to its end."""
    rule: str
    severity: Severity
    state: AlertState
    layer: str
    """The layer, or the first of several."""
    layers: tuple[str, ...]
    step: int
    """The step of the reading that raised it."""
    since: int
    """The first step of the readings that it rests on."""
    message: str
    """What was measured, against what, since when, and what to do."""
    time: float = math.nan
    """When it was raised, in seconds since the epoch; NaN until the monitor has taken it."""
    evidence: Mapping[str, float] = field(default_factory=dict)

    def to_record(self) -> Record:
        """One JSON object, flat but for the evidence."""
        return {
            "id": self.id,
            "rule": self.rule,
            "severity": self.severity,
            "state": self.state,
            "layer": self.layer,
            "layers": list(self.layers),
            "step": self.step,
            "since": self.since,
            "time": _jsonable(self.time),
            "message": self.message,
            "evidence": {key: _jsonable(value) for key, value in self.evidence.items()},
        }


def _grouped(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """`name, name and 3 more: reason`, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for reason, name in reasons:
        by_reason.setdefault(reason, []).append(name)
    return [
        f"{', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}: {reason}"
        for reason, names in by_reason.items()
    ]


def _row(layer: LayerReport) -> list[str]:
    shape = f"{layer.N} × {layer.M}" + (f" × {layer.slices}" if layer.slices > 1 else "")
    if layer.status != "ok":
        return [layer.name, shape if layer.N else "", layer.status, "", "", ""]
    alpha = f"{show(layer, 'alpha', '.2f')} ± {show(layer, 'alpha_stderr', '.2f')}"
    return [
        layer.name,
        shape,
        layer.phase.value,
        f" {alpha} " if layer.alpha_is_meaningful else f"({alpha})",
        show(layer, "mp_soft_rank", ".2f"),
        show(layer, "n_spikes", ".0f"),
    ]


def show(layer: LayerReport, measure: str, form: str) -> str:
    """A measure for the eye, by a format specification; a dash where it is undefined or was not taken."""
    value = layer.measures.get(measure, math.nan)
    return format(value, form) if math.isfinite(value) else "–"


def _jsonable(value: Any) -> Any:
    """Numbers of any library as Python's, and None for one that is not finite."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None
