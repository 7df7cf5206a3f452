"""The life of alerts: pending, firing, resolved; each told once, and those that belong together together.

What the rules say of one reading is not what a sleeper is woken for. A finding is *pending* until it was found in as
many checks in a row as its rule asks for, then it *fires*, and it is *resolved* when it was not found in as many. The
layers of one rule that fire at the same report are one message; those that follow join it, in messages that come
ever more rarely. What has fired once and fires again waits, each time twice as long: a layer on a border is no news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import final

from esdmon.alerts.history import Memory
from esdmon.alerts.messages import Case, fired, grown, resolved
from esdmon.alerts.rule import AlertRule, Finding
from esdmon.isolation import Faults
from esdmon.records import Alert, Report, Severity
from esdmon.records.serialization import Plain, alert_from, to_plain

GATHER = 5
"""Reports for which layers that join an alert are gathered before it is told again; twice as many each time (ours)."""
COOL_DOWN = 10
"""Reports for which what was resolved is not told again when it fires anew; twice as many each time. Our choice."""
_RANKS: dict[Severity, int] = {"critical": 3, "error": 2, "warning": 1, "info": 0}
Cases = dict[str, Case]
Found = dict[str, Finding]


@dataclass(slots=True)
class _Open:
    """An alert that was told and is not resolved."""

    alert: Alert
    report: int
    """When it was last told."""
    told: int = 1
    """How often."""


@final
class AlertManager:
    """Takes reports, asks the rules, and gives the alerts that have begun, grown or ended.

    Args:
        rules: those to ask.
        faults: where a rule that fails is told and, in the end, shut off; its alerts stay as they are meanwhile.
        who: what a rule of a name is called there.
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
        self._memory = Memory(max((_looks_back(rule) for rule in self.rules), default=0))
        self._reports = self._step = 0
        self._cases: dict[str, Cases] = {rule.name: {} for rule in self.rules}
        self._open: dict[tuple[str, Severity], _Open] = {}

    @property
    def firing(self) -> dict[str, int]:
        """For each rule that has fired in this run, in how many layers it does so now."""
        return {
            rule.name: sum(case.firing for case in cases.values())
            for rule in self.rules
            for cases in [self._cases[rule.name]]
            if any(case.firing or case.times for case in cases.values())
        }

    @property
    def pending(self) -> tuple[Alert, ...]:
        """What was found in the last checks, and has not lasted long enough to fire; one for each rule and layer."""
        return tuple(
            replace(fired(rule, case.severity, {name: case}, self._step), state="pending")
            for rule in self.rules
            for name, case in self._cases[rule.name].items()
            if case.wrong and not case.firing
        )

    def take(self, report: Report, *, time: float) -> list[Alert]:
        """The alerts that begin, grow or end with this report.

        Args:
            report: the next one, in step order.
            time: seconds since the epoch, stamped on the alerts: rules are pure and know no clock.
        """
        if not self.rules:
            return []
        self._reports += 1
        self._step = report.step
        for name in self._memory.take(report):
            self._end(name)
        found, checked = self._ask(report)
        self._mute(found)
        changes: list[Alert] = []
        for rule in self.rules:
            if rule.name in checked:
                self._count(rule, found[rule.name], checked[rule.name], report.step)
                changes += self._tell(rule, report.step)
        self._memory.settle(report)
        return [replace(alert, time=time) for alert in changes]

    def state_dict(self) -> Plain:
        """Readings, cases and open alerts, as plain data."""
        return {
            "memory": self._memory.state_dict(),
            "reports": [self._reports, self._step],
            "cases": {rule: {name: asdict(case) for name, case in of.items()} for rule, of in self._cases.items()},
            "open": [[*key, to_plain(each.alert), each.report, each.told] for key, each in self._open.items()],
        }

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse `state_dict()`, and return what goes on from it; what is known of rules that are gone is kept."""
        cases = {rule: {name: Case(**case) for name, case in of.items()} for rule, of in state["cases"].items()}
        opened = {(rule, severity): _Open(alert_from(alert), *told) for rule, severity, alert, *told in state["open"]}
        take_over_memory, (reports, step) = self._memory.prepare(state["memory"]), state["reports"]

        def take_over() -> None:
            take_over_memory()
            self._cases = {rule.name: {} for rule in self.rules} | cases
            self._open, self._reports, self._step = opened, reports, step

        return take_over

    def _ask(self, report: Report) -> tuple[dict[str, Found], dict[str, tuple[str, ...]]]:
        """What each rule finds, and in which layers it has looked; nothing of one that fails."""
        found: dict[str, Found] = {}
        checked: dict[str, tuple[str, ...]] = {}
        for rule in self.rules:
            who = self._who(rule.name)
            if not self._faults.disabled(who):
                with self._faults.isolated(who, report.step, is_timed=True):
                    firing = {name: case.evidence for name, case in self._cases[rule.name].items() if case.firing}
                    history = self._memory.history(rule, report, firing)
                    found[rule.name] = _by_layer(rule.find(history))
                    checked[rule.name] = ("", *history.layers)
        return found, checked

    def _mute(self, found: Mapping[str, Found]) -> None:
        """Drop what another rule has found the cause of, now or while its alert fires. A notice mutes nothing."""
        for rule in self.rules:
            mine = {name for name, case in self._cases[rule.name].items() if case.firing and case.severity != "info"}
            mine |= {name for name, finding in found.get(rule.name, {}).items() if finding.severity != "info"}
            for muted in rule.mutes:
                cases = self._cases.get(muted, {})
                for name in mine:
                    if name not in cases or not cases[name].firing:
                        found.get(muted, {}).pop(name, None)

    def _count(self, rule: AlertRule, found: Found, checked: Iterable[str], step: int) -> None:
        cases = self._cases[rule.name]
        for name in checked:
            finding, case = found.get(name), cases.get(name)
            if finding is not None:
                case = cases.setdefault(name, Case())
                _found(case, finding, rule, step)
                if case.firing and case.severity != "info":
                    self._memory.exclude(name, case.since, step)
            elif case is not None and _not_found(case, rule) and case.severity != "info":
                self._memory.recovered(name, step)
        for name in [name for name, case in cases.items() if not (case.wrong or case.told or case.times)]:
            del cases[name]

    def _tell(self, rule: AlertRule, step: int) -> list[Alert]:
        told: list[Alert] = []
        cases = self._cases[rule.name]
        for severity in _RANKS:  # the worst first: what has become worse leaves the notice that it was
            key = (rule.name, severity)
            mine = {name: case for name, case in cases.items() if case.firing and case.severity == severity}
            new = {name: case for name, case in mine.items() if not case.told and self._reports > case.quiet_until}
            opened = self._open.get(key)
            if opened is not None and not mine:
                del self._open[key]
                if not any(cases[name].firing for name in opened.alert.layers or ("",) if name in cases):
                    told.append(resolved(opened.alert, step))
                continue
            if opened is None and new:
                told.append(fired(rule, severity, new, step))
                self._open[key] = _Open(told[-1], self._reports)
            elif opened is not None and new and self._reports >= opened.report + GATHER * 2 ** (opened.told - 1):
                told.append(grown(rule, opened.alert, new, step))
                self._open[key] = _Open(told[-1], self._reports, opened.told + 1)
            else:
                continue
            for case in new.values():
                case.told = True
        self._cool_down(cases)
        return told

    def _cool_down(self, cases: Cases) -> None:
        for case in cases.values():
            if case.told and not case.firing:
                case.told, case.times = False, case.times + 1
                case.quiet_until = self._reports + COOL_DOWN * 2 ** (case.times - 1)

    def _end(self, name: str) -> None:
        """A layer that the model has no more has no alert either."""
        for cases in self._cases.values():
            if name in cases:
                cases[name].firing = False
                cases[name].wrong = 0


def _looks_back(rule: AlertRule) -> int:
    """Return how many reports a rule looks back on: a threshold of that name says so."""
    back = rule.thresholds.get("due_steps", 0)
    return back + 1 if isinstance(back, int) else 0


def _by_layer(findings: Iterable[Finding]) -> Found:
    found: Found = {}
    for finding in findings:
        if not isinstance(finding, Finding):
            msg = f"a rule gives findings, got {finding!r}"
            raise TypeError(msg)
        found[finding.layer] = finding
    return found


def _found(case: Case, finding: Finding, rule: AlertRule, step: int) -> None:
    if not case.wrong:
        case.since = step
    case.wrong, case.right = case.wrong + 1, 0
    severity = finding.severity or rule.severity
    if not case.firing:
        case.evidence = dict(finding.evidence)
        case.firing = case.wrong >= rule.checks
    elif _RANKS[severity] <= _RANKS[case.severity]:
        return
    else:
        case.told = False
    case.what, case.severity = finding.what, severity


def _not_found(case: Case, rule: AlertRule) -> bool:
    """Count it; returns whether that has ended an alert."""
    case.right += 1
    if case.firing and case.right < rule.clear:
        return False
    ended, case.firing = case.firing, False
    case.wrong = case.right = 0
    return ended
