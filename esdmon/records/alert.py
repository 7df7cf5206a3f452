"""Define `Alert`, the record of an alert."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeAlias

from esdmon.encoding import printed
from esdmon.records import html
from esdmon.records.colours import SEVERITY_HEX
from esdmon.records.values import Record, jsonable

Severity: TypeAlias = Literal["info", "warning", "error", "critical"]
AlertState: TypeAlias = Literal["pending", "firing", "resolved"]
MAX_BY_LAYER = 20
"""Largest number of layers of an alert whose own findings are kept. Our choice."""
_MAX_LINES = 8  # lines of layers that are shown


def severity_word(severity: Severity) -> str:
    """Return a severity in the word that readers see: `notice` for `info`."""
    return "notice" if severity == "info" else severity


def not_at(since: int, after: int | None) -> str:
    """Return ` (not yet at step 400)` for `after`, or an empty text if it is None or one step before `since`."""
    return "" if after is None or since - after <= 1 else f" (not yet at step {after})"


@dataclass(frozen=True, slots=True)
class LayerFinding:
    """The finding of an alert in one of its layers."""

    layer: str
    """Canonical name of the layer."""
    since: int
    """Step of the first reading of this layer that the alert is based on."""
    what: str
    """The value that was measured when the alert fired, and the value it was compared with."""
    after: int | None = None
    """Step of the last check of this layer before `since`, which found nothing; None if there was no such check."""

    def __str__(self) -> str:
        """Return one line."""
        return f"{self.layer} since step {self.since}{not_at(self.since, self.after)}: {self.what}"


@dataclass(frozen=True, slots=True)
class Alert:
    """A problem that an alert rule found, in one of its states: pending, firing or resolved."""

    id: str
    """Identifier of the problem; it stays the same from the first firing until it is resolved."""
    rule: str
    """Name of the alert rule."""
    severity: Severity
    state: AlertState
    """`pending`: not found often enough to fire; `firing`: the problem exists; `resolved`: it has ended."""
    layer: str
    """Canonical name of the affected layer, or of the first of several; empty for a problem of the whole run."""
    layers: tuple[str, ...]
    """Canonical names of all affected layers."""
    step: int
    """Step, in optimizer steps, of the reading that changed the state."""
    since: int
    """Step of the earliest reading that the alert is based on; at most `step`."""
    message: str
    """The measured value, the value it is compared with, the step since when, and what to do."""
    time: float = math.nan
    """When the monitor raised the alert, in seconds since the epoch; NaN before, and in a replay."""
    evidence: Mapping[str, float] = field(default_factory=dict)
    """The numbers that the rule compared, by name; for several layers the numbers of the first."""
    by_layer: tuple[LayerFinding, ...] = ()
    """The findings in the first 20 layers, in the order in which they were found."""
    after: int | None = None
    """Step of the last check before `since`, which found nothing: the problem began between the two steps. None if
    there was no such check."""

    @property
    def layer_lines(self) -> list[str]:
        """Return a line for each of the first eight layers; an empty list for an alert on a single layer."""
        if len(self.layers) < 2:
            return []
        shown = self.by_layer[:_MAX_LINES]
        more = len(self.layers) - len(shown)
        lines = [str(each) for each in shown]
        return [*lines, f"and {more} more"] if lines and more else lines

    def to_record(self) -> Record:
        """Return one JSON object, flat except for `evidence` and `by_layer`.

        Numbers that are not finite are None. `by_layer` and `after` are missing if they are not known.
        """
        optional = {"by_layer": [asdict(each) for each in self.by_layer], "after": self.after}
        return {
            "id": self.id,
            "rule": self.rule,
            "severity": self.severity,
            "state": self.state,
            "layer": self.layer,
            "layers": list(self.layers),
            "step": self.step,
            "since": self.since,
            "time": jsonable(self.time),
            "message": self.message,
            "evidence": {key: jsonable(value) for key, value in self.evidence.items()},
        } | {key: value for key, value in optional.items() if value not in (None, [])}

    def __str__(self) -> str:
        """Return one line: step, severity, state and message."""
        return printed(f"step {self.step}, {severity_word(self.severity)}, {self.state}: {self.message}")

    def __repr__(self) -> str:
        """Return the line of `__str__` in brackets."""
        return f"<Alert {self}>"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks."""
        badge = html.badge(f"{severity_word(self.severity)}, {self.state}", SEVERITY_HEX.get(self.severity, ""))
        return html.page(html.paragraph(badge, html.faint(f"step {self.step}"), self.message), *self.layer_lines)
