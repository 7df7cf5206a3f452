"""Write the messages of an alert when it begins, grows and ends."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from esdmon.alerts.rule import AlertRule
from esdmon.records import Alert, LayerFinding, Severity
from esdmon.records.alert import MAX_BY_LAYER, not_at
from esdmon.records.serialization import Plain, check_severity, known
from esdmon.records.text import named

_NAMED = 3  # layers that a message names


@dataclass(slots=True)
class Case:
    """What one rule has found in one layer so far."""

    wrong: int = 0
    """Consecutive checks with a finding; while the alert fires, all checks with one."""
    right: int = 0
    """Consecutive checks without a finding while the alert fires."""
    since: int = 0
    """Step of the first check with a finding."""
    after: int | None = None
    """Step of the check before `since`, which found nothing; None if there was none."""
    what: str = ""
    severity: Severity = "warning"
    evidence: dict[str, float] = field(default_factory=dict)
    """The evidence on which the alert began."""
    firing: bool = False
    announced: bool = False
    """True if a message has named this layer since it began to fire."""
    times: int = 0
    """How often it was announced and then resolved."""
    quiet_until: int = 0
    """Number of the report up to which a new firing is not announced."""
    worse: Case | None = None
    """While the alert fires: findings of a worse severity that have not yet persisted long enough to change it."""
    mild: int | None = None
    """Step of the last check, while the alert fires, whose finding was not worse."""

    def to_state(self) -> Plain:
        """Return the case as plain data; saved states call `announced` by its former name, `told`."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)} | {"evidence": dict(self.evidence)}
        plain["told"] = plain.pop("announced")
        plain["worse"] = self.worse and self.worse.to_state()
        return plain

    @classmethod
    def from_state(cls, plain: Plain) -> Case:
        """Return the case that `to_state` has written."""
        saved = known(plain, {each.name for each in fields(cls)} - {"announced"} | {"told"})
        check_severity(saved["severity"])
        worse = saved.pop("worse", None)
        return cls(announced=saved.pop("told"), worse=worse and cls.from_state(worse), **saved)


def fired(rule: AlertRule, severity: Severity, cases: Mapping[str, Case], step: int) -> Alert:
    """Return one alert for all layers in which a rule begins to fire at the same report.

    The message names up to three layers, then what was measured in the first, since when, and the rule's advice.
    """
    names = tuple(cases)
    lead = cases[names[0]]
    lasted = f", in {lead.wrong} checks since step {lead.since}" if rule.checks > 1 else f", at step {step}"
    if not re.search(rf"\bstep {lead.after}\b", lead.what):  # the finding may name this step already
        lasted += not_at(lead.since, lead.after)
    earliest = min(cases.values(), key=lambda case: case.since)
    by_layer = [LayerFinding(name, case.since, case.what, case.after) for name, case in cases.items() if name]
    # "infinite (0)" would read as a count.
    of = f" ({'layer ' if names[0].isdigit() else ''}{names[0]})" if len(names) > 1 else ""
    return Alert(
        id=f"{rule.name}:{names[0]}" if names[0] else rule.name,
        rule=rule.name,
        severity=severity,
        state="firing",
        layer=names[0],
        layers=tuple(name for name in names if name),
        step=step,
        since=earliest.since,
        message=f"{_prefix(names)}{rule.name}: {lead.what}{of}{lasted}. {rule.advice}".rstrip(),
        evidence=lead.evidence,
        by_layer=tuple(by_layer[:MAX_BY_LAYER]),
        after=earliest.after,
    )


def grown(rule: AlertRule, alert: Alert, cases: Mapping[str, Case], step: int) -> Alert:
    """Return an open alert with the layers that have joined it."""
    new = fired(rule, alert.severity, cases, step)
    joined = [each for each in new.by_layer if each.layer not in alert.layers]
    by_layer = (*alert.by_layer, *joined)[:MAX_BY_LAYER]
    together = (*alert.layers, *(name for name in new.layers if name not in alert.layers))
    message = f"{new.message} ({len(together)} layers in total, since step {alert.since})"
    return replace(alert, layers=together, step=step, message=message, by_layer=by_layer)


def resolved(alert: Alert, step: int) -> Alert:
    """Return the alert in its state `resolved`, with severity `info`."""
    message = f"{_prefix(alert.layers)}{alert.rule} resolved at step {step}; it began at step {alert.since}."
    return replace(alert, state="resolved", severity="info", step=step, message=message, by_layer=())


def _prefix(names: Sequence[str]) -> str:
    """Return `a, b, c and 4 more: `; empty for an alert about the whole model."""
    if not any(names):
        return ""
    return f"{named(names, most=_NAMED)}: "
