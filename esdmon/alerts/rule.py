"""Define what an alert rule is: what it reads, and what it returns.

A rule reports what is wrong at this step and keeps no state. `AlertManager` counts for how many checks in a row a rule
has found a fault, and decides when an alert begins and ends.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias, get_args

from esdmon.calls import explain_wrong_calls
from esdmon.errors import InputError
from esdmon.records import MOVED, LayerReport, Report, Severity

PRUNED = 0.5
"""Share of zero elements above which a spectrum shows the pruning mask rather than what was learned. Our choice."""

Counts: TypeAlias = Literal["moves", "readings", "reports"]


class Peak(NamedTuple):
    """The largest values of a layer so far, outside alerts."""

    step_ratio: float = 0.0
    learning_rate: float = 0.0


class Pause(NamedTuple):
    """How long a layer in the optimizer has stood still, in reports at due steps."""

    now: int = 0
    """Up to the latest report; 0 if it moves."""
    longest: int = 0
    """The longest time after which it moved again."""


@dataclass(frozen=True, slots=True)
class History:
    """All that a rule reads: the report, and the past readings of the layers it checks."""

    report: Report
    """The latest reading of every layer."""
    layers: Mapping[str, Sequence[LayerReport]]
    """For each layer to check now: its last readings that count for the rule, at most 16, oldest first."""
    first: Mapping[str, LayerReport]
    """For each of these layers: the first reading of the run in which its weight had moved, or the first of all. After
    an alert about the layer has ended, the first reading from then on."""
    baseline: Mapping[str, Sequence[LayerReport]] = field(default_factory=dict)
    """For each of these layers: its readings before the last three, without those during an alert, at most 16, oldest
    first. Rules on changes compare with these."""
    previous: Mapping[str, LayerReport] = field(default_factory=dict)
    """For each of these layers: the reading before the last, scheduled or extra, from which `update_ratio` is measured.
    Layers without one are missing."""
    peak: Mapping[str, Peak] = field(default_factory=dict)
    """For each layer of the report, checked now or not: the largest values of the readings that are or were in its
    baseline."""
    firing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The layers in which the rule's alert fires, each with the evidence on which the alert began. Needed for
    hysteresis: an alert that fires goes on at a milder threshold, measured from the values on which it began."""
    steps: Sequence[int] = ()
    """Steps of the last reports, oldest first: 128, or as many as a rule with `due_steps` needs."""
    pauses: Mapping[str, Pause] = field(default_factory=dict)
    """For each layer that stands still, or has done so and moved again: how long."""


@explain_wrong_calls
@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule reports as wrong at this step."""

    layer: str
    """Name of the layer; empty for the whole model."""
    what: str
    """What was measured, against which threshold or baseline: `alpha 1.71 (at most 1.80) is below 2`."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The values behind it, by name of the measure; written to JSONL with the alert."""
    severity: Severity | None = None
    """Overrides the severity of the rule; None keeps it."""


@explain_wrong_calls
@dataclass(frozen=True, slots=True)
class AlertRule:
    """A named function `(history) -> findings`, with how long a finding must persist before an alert fires.

    Keyword-only parameters of `find` are its thresholds; a TOML file may set them.
    """

    name: str
    find: Callable[..., Iterable[Finding]]
    """A pure function: the same history gives the same findings."""
    severity: Severity = "warning"
    checks: int = 3
    """Consecutive checks with a finding before the alert fires; `for` in a TOML file."""
    clear: int = 3
    """Consecutive checks without a finding before the alert is resolved."""
    counts: Counts = "moves"
    """What counts as a check of a layer. "moves": a reading before which the weight moved, of a weight that is not
    pruned; "readings": any reading; "reports": every report, whether the layer was read or not; an extra report counts
    only for the layers that were read in it."""
    advice: str = ""
    """What the user should do; the end of the alert's message."""
    mutes: tuple[str, ...] = ()
    """Rules whose findings are dropped in layers where this one has found something: consequences of the same fault."""
    needs: tuple[str, ...] = ()
    """Measures that the rule reads; it is left out where one of them is not computed."""
    layers: tuple[str, ...] = ("*",)
    """fnmatch patterns of the layers to check."""
    exclude: tuple[str, ...] = ()
    """fnmatch patterns of the layers to leave out."""
    mutes_elsewhere: tuple[str, ...] = ()
    """Rules whose findings are dropped in all layers, for five reports after an alert of this rule has begun: a fault
    of one layer disturbs the other layers at first."""

    def __post_init__(self) -> None:
        """Check the fields, so that a wrong value fails now and not when the rule runs.

        Raises:
            InputError: for a value of another type, a number of checks below 1, and an unknown severity or `counts`.
        """
        name: object = self.name
        if not isinstance(name, str) or not callable(self.find):
            raise InputError(f"AlertRule needs a name and a function; got {self.name!r} and {self.find!r}")
        for field_, known in (("severity", get_args(Severity)), ("counts", get_args(Counts))):
            if (got := getattr(self, field_)) not in known:
                raise InputError(f"the rule {self.name}: {field_}= must be one of {', '.join(known)}; got {got!r}")
        for field_ in ("checks", "clear"):
            got = getattr(self, field_)
            if not isinstance(got, int) or isinstance(got, bool) or got < 1:
                raise InputError(f"the rule {self.name}: {field_}= must be a whole number, 1 or more; got {got!r}")
        for field_ in ("mutes", "needs", "layers", "exclude", "mutes_elsewhere"):
            if isinstance(got := getattr(self, field_), str):
                raise InputError(
                    f"the rule {self.name}: {field_}= must be a tuple of names; got {got!r}: give ({got!r},)"
                )

    @property
    def thresholds(self) -> dict[str, object]:
        """Return the keyword-only parameters of `find` with their values."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.find).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    @property
    def function(self) -> Callable[..., Iterable[Finding]]:
        """Return `find` without thresholds that `functools.partial` has set."""
        found: Callable[..., Iterable[Finding]] = getattr(self.find, "func", self.find)
        return found

    @property
    def page(self) -> str:
        """Return the docstring of `find`: when the rule fires, why, and by which source."""
        return self._docstring or "This rule has no description."

    @property
    def is_explained(self) -> bool:
        """Return True if `find` has a docstring."""
        return bool(self._docstring)

    @property
    def _docstring(self) -> str:
        return inspect.getdoc(self.function) or ""


def value_of(layer: LayerReport, measure: str) -> float:
    """Return a measure of a reading; NaN where it was not computed."""
    return layer.measures.get(measure, math.nan)


def values_of(layer: LayerReport, *measures: str) -> tuple[float, ...]:
    """Return several measures of a reading, as `value_of` does."""
    return tuple(value_of(layer, measure) for measure in measures)


def evidence_of(layer: LayerReport, *names: str) -> dict[str, float]:
    """Return measures of a reading by name, without those that were not computed."""
    return {name: layer.measures[name] for name in names if name in layer.measures}


def has_moved(layer: LayerReport) -> bool:
    """Return True if the weight changed since its last reading: only then is a reading new evidence."""
    return layer.status == "ok" and not layer.update_ratio <= MOVED


def is_pruned(layer: LayerReport) -> bool:
    """Return True if over half of the elements are exactly zero, outside all-zero rows and columns."""
    return layer.measures.get("sparsity", 0.0) > PRUNED
