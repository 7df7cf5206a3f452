"""Define what an alert rule is: what it reads, and what it returns.

A rule reports what is wrong at this step and keeps no state. `AlertManager` counts for how many readings in a row a
rule has found the same, and decides when an alert begins and ends.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from esdmon.records import MOVED, LayerReport, Report, Severity

PRUNED = 0.5
"""Share of zero elements from which a spectrum is that of a mask rather than of what was learned. Our choice."""

Counts: TypeAlias = Literal["moves", "readings", "reports"]


@dataclass(frozen=True, slots=True)
class History:
    """What a rule may look at."""

    report: Report
    """All layers as they were last read."""
    layers: Mapping[str, Sequence[LayerReport]]
    """Of each layer that is checked now, the last readings that count for the rule, oldest first: 16 at most."""
    first: Mapping[str, LayerReport]
    """Of each of them, the first reading of the run in which its weight had moved, or the first of all; since an alert
    about it has ended, the first from then on."""
    baseline: Mapping[str, Sequence[LayerReport]] = field(default_factory=dict)
    """Of each of them, the readings before the last three that no alert was about, oldest first: 16 at most. What is
    said of a change is said against these."""
    firing: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The layers for which the rule's alert fires, each with the evidence on which it began: what is enough to keep an
    alert may be less than what it takes to begin one, and what it began on is what it has to come back from."""
    steps: Sequence[int] = ()
    """The steps of the last reports, oldest first: 128 at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule finds wrong now."""

    layer: str
    """Its name; empty for the model."""
    what: str
    """What was measured, against what, and how sure that is: `alpha 1.71 (at most 1.80) is below 2`."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    severity: Severity | None = None
    """Where it is not the rule's own."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """A named `(history) -> findings`, and how long what it finds must last.

    Keyword-only parameters of `find` are thresholds, which a TOML file may set.
    """

    name: str
    find: Callable[..., Iterable[Finding]]
    """Pure: the same history, the same findings."""
    severity: Severity = "warning"
    checks: int = 3
    """Checks in a row in which it is found before its alert fires; the `for` of a TOML file."""
    clear: int = 3
    """Checks in a row in which it is not found before its alert is resolved."""
    counts: Counts = "moves"
    """What is a check of a layer: "moves", a reading before which the weight moved, and that is not of a pruned weight;
    "readings", any reading; "reports", every report, whether the layer was read or not."""
    advice: str = ""
    """What to do."""
    mutes: tuple[str, ...] = ()
    """Rules that are not asked about a layer in which this one has found something: the same fault, seen less well."""
    needs: tuple[str, ...] = ()
    """Measures without which it cannot be asked."""
    layers: tuple[str, ...] = ("*",)
    """fnmatch patterns of the layers that it looks at."""
    exclude: tuple[str, ...] = ()
    """Patterns of those that it does not."""

    @property
    def thresholds(self) -> dict[str, object]:
        """The keyword-only parameters of `find`, with their values."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.find).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }

    @property
    def page(self) -> str:
        """What it says, why, and by which source, in plain words: the docstring of `find`."""
        return self._docstring or "Nothing is written about it."

    @property
    def is_explained(self) -> bool:
        """Whether it has a page."""
        return bool(self._docstring)

    @property
    def _docstring(self) -> str:
        function = getattr(self.find, "func", self.find)  # of a partial, the function
        return inspect.getdoc(function) or ""


def measured(layer: LayerReport, *names: str) -> tuple[float, ...]:
    """Measures of a reading; NaN for those that were not taken."""
    return tuple(layer.measures.get(name, math.nan) for name in names)


def evidence_of(layer: LayerReport, *names: str) -> dict[str, float]:
    """Likewise, by name."""
    return {name: layer.measures[name] for name in names if name in layer.measures}


def has_moved(layer: LayerReport) -> bool:
    """Whether a reading is news of a weight that trains: of one that stands still it says the same thing again."""
    return layer.status == "ok" and not layer.update_ratio <= MOVED


def is_pruned(layer: LayerReport) -> bool:
    """Whether most of its elements are exactly zero, outside the rows and columns that are."""
    return layer.measures.get("sparsity", 0.0) > PRUNED
