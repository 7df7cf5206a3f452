"""Decide when an alert begins, grows and ends.

A single finding does not raise an alert. It is *pending* until its rule has found it in `checks` consecutive checks;
then the alert *fires*. It is *resolved* after `clear` consecutive checks without a finding. Layers in which one rule
begins to fire at the same report share one message. Layers that follow join the alert in further messages, at growing
intervals. After an alert has ended, it is not announced again during a cool-down, which doubles each time, so that a
layer at a threshold does not alternate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

from esdmon.alerts.clear_checks import ClearChecks
from esdmon.alerts.history import ReadingHistory
from esdmon.alerts.messages import Case, fired, grown, resolved
from esdmon.alerts.rule import AlertRule, Finding
from esdmon.isolation import Faults
from esdmon.records import Alert, Report, Severity
from esdmon.records.serialization import Plain, alert_from_plain, known, to_plain

GATHER = 5
"""Reports to wait before layers that join an alert are announced; doubles with each message. Our choice."""
COOL_DOWN = 10
"""Reports after the end of an alert in which the same alert is not announced again; doubles each time. Our choice."""
AFTERMATH = 5
"""Reports after the beginning of an alert in which its rule mutes other rules in all layers. Gradients that grew
because one layer was replaced are normal again by then. Our choice."""
_RANKS: dict[Severity, int] = {"critical": 3, "error": 2, "warning": 1, "info": 0}
Cases = dict[str, Case]
Found = dict[str, Finding]


@dataclass(slots=True)
class _Open:
    """An alert that has been announced and is not resolved."""

    alert: Alert
    report: int
    """Number of the report at which its last message was sent."""
    messages: int = 1
    """How many messages it has had."""


@final
class AlertManager:
    """Runs the rules on each report and returns the alerts that begin, grow or end with it.

    Args:
        rules: the rules to run, in the order in which they mute others.
        faults: isolates the rules. A rule that raises is logged and, if it keeps failing, paused; its alerts keep their
            state meanwhile.
        who: returns the name under which a rule's faults are logged.
    """

    def __init__(
        self,
        rules: Iterable[AlertRule] = (),
        *,
        faults: Faults | None = None,
        who: Callable[[str], str] = "rule {}".format,
    ) -> None:
        self.rules = tuple(rules)
        self._who = who
        self._faults = faults or Faults()
        self._history = ReadingHistory(max((_looks_back(rule) for rule in self.rules), default=0))
        self._reports = self._step = 0
        self._cases: dict[str, Cases] = {rule.name: {} for rule in self.rules}
        self._open: dict[tuple[str, Severity], _Open] = {}
        self._clear = ClearChecks()
        self._begun: dict[str, int] = {}
        """Number of the report at which a rule last began to fire in a layer, whatever the severity."""

    @property
    def firing(self) -> dict[str, int]:
        """Return the number of layers in which a rule fires now, for each rule that has fired in this run."""
        counts: dict[str, int] = {}
        for rule in self.rules:
            cases = self._cases[rule.name].values()
            if any(case.firing or case.times for case in cases):
                counts[rule.name] = sum(case.firing for case in cases)
        return counts

    @property
    def pending(self) -> tuple[Alert, ...]:
        """Return the findings that have not yet persisted long enough, one for each rule and layer.

        Once they have, they begin an alert, or raise the severity of one that fires.
        """
        return tuple(
            replace(fired(rule, each.severity, {name: each}, self._step), state="pending")
            for rule in self.rules
            for name, case in self._cases[rule.name].items()
            if (each := case.worse if case.firing else case) and each.wrong
        )

    def take(self, report: Report, *, time: float) -> list[Alert]:
        """Return the alerts that begin, grow or end with a report.

        Args:
            report: the next report; reports must come in step order.
            time: seconds since the epoch, stamped on the alerts. Rules are pure and read no clock.
        """
        if not self.rules:
            return []
        report = replace(report, layers=tuple(layer for layer in report if layer.is_followed))
        self._reports += not report.extra  # extra reports are closer together
        self._step = report.step
        for name in self._history.take(report):
            self._end(name)
        found, checked = self._run_rules(report)
        for name, layers in checked.items():
            self._clear.take(name, found[name], layers, report.step)
        self._mute(found)
        changes: list[Alert] = []
        for rule in self.rules:
            if rule.name in checked:
                self._count(rule, found[rule.name], checked[rule.name], report.step)
                changes += self._announce(rule, report.step)
        self._history.extend_baselines(report)
        return [replace(alert, time=time) for alert in changes]

    def state_dict(self) -> Plain:
        """Return readings, cases and open alerts as plain data."""
        return {
            "memory": self._history.state_dict(),
            "reports": [self._reports, self._step],
            "cases": {rule: {name: case.to_state() for name, case in of.items()} for rule, of in self._cases.items()},
            "begun": dict(self._begun),
            "clear": self._clear.state_dict(),
            "open": [[*key, to_plain(each.alert), each.report, each.messages] for key, each in self._open.items()],
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse a `state_dict()` and return a function that restores it; alerts of rules no longer in use are kept."""
        state = known(state, ("memory", "reports", "cases", "begun", "clear", "open"))
        cases = {
            rule: {name: Case.from_state(case) for name, case in of.items()} for rule, of in state["cases"].items()
        }
        opened = {
            (rule, severity): _Open(alert_from_plain(alert), report, messages)
            for rule, severity, alert, report, messages in state["open"]
        }
        restore_readings, (reports, step) = self._history.prepare(state["memory"]), state["reports"]
        restore_clear = self._clear.prepare(state.get("clear", {"rules": [], "layers": {}}))  # older states have none
        begun = {rule: int(report) for rule, report in state.get("begun", {}).items()}  # older states have none

        def restore() -> None:
            restore_readings()
            restore_clear()
            self._cases = {rule.name: {} for rule in self.rules} | cases
            self._open, self._reports, self._step, self._begun = opened, reports, step, begun

        return restore

    def _run_rules(self, report: Report) -> tuple[dict[str, Found], dict[str, tuple[str, ...]]]:
        """Return the findings of each rule and the layers it has checked; a rule that raises is in neither."""
        found: dict[str, Found] = {}
        checked: dict[str, tuple[str, ...]] = {}
        for rule in self.rules:
            who = self._who(rule.name)
            if not self._faults.disabled(who):
                with self._faults.isolated(who, report.step, is_timed=True):
                    firing = {name: case.evidence for name, case in self._cases[rule.name].items() if case.firing}
                    history = self._history.history(rule, report, firing)
                    found[rule.name] = _by_layer(rule.find(history), report)
                    is_of_layers = report.extra and rule.counts == "reports"  # an extra report shows some layers only
                    checked[rule.name] = tuple(history.layers) if is_of_layers else ("", *history.layers)
        return found, checked

    def _mute(self, found: Mapping[str, Found]) -> None:
        """Drop the findings that rules with a finding or an alert mute; an `info` mutes nothing in its own layer."""
        for rule in self.rules:
            mine = {name for name, case in self._cases[rule.name].items() if case.firing and case.severity != "info"}
            mine |= {name for name, finding in found.get(rule.name, {}).items() if finding.severity != "info"}
            for muted in rule.mutes:
                _drop(mine, found.get(muted, {}), self._cases.get(muted, {}))
            if self._reports <= self._begun.get(rule.name, -AFTERMATH - 1) + AFTERMATH:
                for muted in rule.mutes_elsewhere:
                    _drop(tuple(found.get(muted, {})), found.get(muted, {}), self._cases.get(muted, {}))

    def _count(self, rule: AlertRule, found: Found, checked: Iterable[str], step: int) -> None:
        """Update the case of each checked layer, and exclude the readings during an alert from its baseline."""
        cases = self._cases[rule.name]
        for name in checked:
            finding, case = found.get(name), cases.get(name)
            if finding is not None:
                case = cases.setdefault(name, Case())
                if not case.wrong:
                    case.since, case.after = step, self._clear.last(rule.name, name)
                if _count_finding(case, finding, rule, step):
                    self._begun[rule.name] = self._reports
                if case.firing and case.severity != "info":
                    self._history.exclude(name, case.since, step)
            elif case is not None and _count_clear(case, rule) and case.severity != "info":
                self._history.restart(name, step)
        for name in [name for name, case in cases.items() if not (case.wrong or case.announced or case.times)]:
            del cases[name]

    def _announce(self, rule: AlertRule, step: int) -> list[Alert]:
        """Return the messages due for a rule, worst severity first: a layer that becomes worse leaves its notice."""
        alerts = [self._announce_severity(rule, severity, step) for severity in _RANKS]
        self._cool_down(self._cases[rule.name])
        return [alert for alert in alerts if alert is not None]

    def _announce_severity(self, rule: AlertRule, severity: Severity, step: int) -> Alert | None:
        """Return the message due for a rule at one severity, which begins, extends or ends its alert."""
        cases = self._cases[rule.name]
        firing = {name: case for name, case in cases.items() if case.firing and case.severity == severity}
        new = {name: case for name, case in firing.items() if not case.announced and self._reports > case.quiet_until}
        key = (rule.name, severity)
        opened = self._open.get(key)
        if opened is not None and not firing:
            del self._open[key]
            layers = opened.alert.layers or ("",)
            goes_on = any(name in cases and cases[name].firing for name in layers)  # at another severity
            return None if goes_on else resolved(opened.alert, step)
        if not new:
            return None
        if opened is None:
            now = _Open(fired(rule, severity, new, step), self._reports)
        elif self._reports >= opened.report + GATHER * 2 ** (opened.messages - 1):
            now = _Open(grown(rule, opened.alert, new, step), self._reports, opened.messages + 1)
        else:
            return None
        self._open[key] = now
        for case in new.values():
            case.announced = True
        return now.alert

    def _cool_down(self, cases: Cases) -> None:
        """Start the cool-down of each case that was announced and no longer fires."""
        for case in cases.values():
            if case.announced and not case.firing:
                case.announced, case.times = False, case.times + 1
                case.quiet_until = self._reports + COOL_DOWN * 2 ** (case.times - 1)

    def _end(self, name: str) -> None:
        """End all findings in a layer that the model no longer has."""
        self._clear.forget(name)
        for cases in self._cases.values():
            if name in cases:
                cases[name].firing = False
                cases[name].wrong = 0


def _looks_back(rule: AlertRule) -> int:
    """Return the number of reports that a rule looks back on, from its threshold `due_steps`."""
    back = rule.thresholds.get("due_steps", 0)
    return back + 1 if isinstance(back, int) else 0


def _by_layer(answer: Any, report: Report) -> Found:
    """Return the findings of a rule by layer.

    Raises:
        TypeError: for anything else, such as None from a rule that does not return anything.
        ValueError: for a layer that the report does not have.
    """
    known = {"", *(layer.name for layer in report), *report.waiting}
    found: Found = {}
    is_several = isinstance(answer, Iterable) and not isinstance(answer, str)
    for finding in answer if is_several else [answer]:
        if not isinstance(finding, Finding):
            msg = f"a rule must return Finding objects; got {finding!r}"
            raise TypeError(msg)
        if finding.layer not in known:
            msg = f"a rule found something in the layer {finding.layer!r}, which is not a layer of this model"
            raise ValueError(msg)
        found[finding.layer] = finding
    return found


def _drop(names: Iterable[str], found: Found, cases: Cases) -> None:
    """Drop findings in these layers; where the rule fires already, keep them, but at the severity of the alert."""
    for name in names:
        if name not in cases or not cases[name].firing:
            found.pop(name, None)
        elif name in found:
            found[name] = replace(found[name], severity=cases[name].severity)


def _count_finding(case: Case, finding: Finding, rule: AlertRule, step: int) -> bool:
    """Count a check with a finding, and return True if that begins an alert.

    A worse severity must persist as long as a finding that begins an alert. Then the alert takes its severity and text.
    """
    severity = finding.severity or rule.severity
    case.wrong, case.right = case.wrong + 1, 0
    if not case.firing:
        case.what, case.severity, case.evidence = finding.what, severity, dict(finding.evidence)
        case.firing = case.wrong >= rule.checks
        return case.firing
    if _RANKS[severity] <= _RANKS[case.severity]:
        case.worse, case.mild = None, step
        return False
    worse = case.worse = case.worse or Case(since=step, after=case.mild)
    worse.wrong, worse.what, worse.severity = worse.wrong + 1, finding.what, severity
    if worse.wrong >= rule.checks:
        case.wrong, case.since, case.after = worse.wrong, worse.since, worse.after
        case.what, case.severity = worse.what, worse.severity
        case.worse, case.announced = None, False
    return False


def _count_clear(case: Case, rule: AlertRule) -> bool:
    """Count a check without a finding, and return True if that ends an alert."""
    case.right += 1
    case.worse = None
    if case.firing and case.right < rule.clear:
        return False
    ended, case.firing = case.firing, False
    case.wrong = case.right = 0
    case.mild = None
    return ended
