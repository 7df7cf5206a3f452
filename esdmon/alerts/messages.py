"""What an alert says when it begins, grows and ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from esdmon.alerts.rule import AlertRule
from esdmon.records import Alert, Severity

_NAMED = 3  # layers that a message names


@dataclass(slots=True)
class Case:
    """One rule and one layer."""

    wrong: int = 0
    """Checks in a row in which it was found; since it fires, in all."""
    right: int = 0
    """Checks in a row in which it was not, since it fires."""
    since: int = 0
    """Step of the first of the checks in which it was found."""
    what: str = ""
    severity: Severity = "warning"
    evidence: dict[str, float] = field(default_factory=dict)
    """As it began."""
    firing: bool = False
    told: bool = False
    times: int = 0
    """How often it was told and resolved."""
    quiet_until: int = 0
    """The report up to which it is not told again."""


def fired(rule: AlertRule, severity: Severity, cases: Mapping[str, Case], step: int) -> Alert:
    """An alert about layers that have begun to fire together."""
    names = tuple(cases)
    lead = cases[names[0]]
    lasted = f", in {lead.wrong} checks since step {lead.since}" if rule.checks > 1 else f", at step {step}"
    of = f" ({names[0]})" if len(names) > 1 else ""
    return Alert(
        id=f"{rule.name}:{names[0]}" if names[0] else rule.name,
        rule=rule.name,
        severity=severity,
        state="firing",
        layer=names[0],
        layers=tuple(name for name in names if name),
        step=step,
        since=min(case.since for case in cases.values()),
        message=f"{_who(names)}{rule.name}: {lead.what}{of}{lasted}. {rule.advice}".rstrip(),
        evidence=lead.evidence,
    )


def grown(rule: AlertRule, alert: Alert, cases: Mapping[str, Case], step: int) -> Alert:
    """The same alert, which other layers have joined."""
    new = fired(rule, alert.severity, cases, step)
    together = (*alert.layers, *(name for name in new.layers if name not in alert.layers))
    message = f"{new.message} ({len(together)} layers by now, since step {alert.since})"
    return replace(alert, layers=together, step=step, message=message)


def resolved(alert: Alert, step: int) -> Alert:
    """The end of an alert."""
    message = f"{_who(alert.layers)}{alert.rule} no longer holds at step {step} (it held since step {alert.since})."
    return replace(alert, state="resolved", severity="info", step=step, message=message)


def _who(names: Sequence[str]) -> str:
    if not any(names):
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}: "
