"""The record of an alert."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from esdmon.records.values import Record, jsonable

Severity: TypeAlias = Literal["info", "warning", "error", "critical"]
AlertState: TypeAlias = Literal["pending", "firing", "resolved"]


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
            "time": jsonable(self.time),
            "message": self.message,
            "evidence": {key: jsonable(value) for key, value in self.evidence.items()},
        }
