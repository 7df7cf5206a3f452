"""Apply alert rules to a finished run, to try thresholds without training again."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from esdmon.alerts import AlertManager, AlertRule
from esdmon.calls import explain_wrong_calls
from esdmon.isolation import Fault, Faults
from esdmon.records import Alert, Report
from esdmon.replay.events import RunState, events_by_run


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of a replay."""

    alerts: list[Alert]
    """The alerts in order; their `time` is NaN."""
    faults: tuple[Fault, ...]
    """The rules that failed, each with its last error and the number of errors in all runs of the file."""


@explain_wrong_calls
def replay(run: str | Path, rules: Iterable[AlertRule]) -> list[Alert]:
    """Return the alerts that rules would have raised in a run, in order. Their `time` is NaN.

    Errors of a rule are logged; after three errors in a row the rule is not checked in the rest of the run.
    `replay_with_faults` also returns the rules that have failed.

    Args:
        run: the JSONL of a run, or its folder. If the file contains several runs, each is replayed separately.
        rules: the alert rules to apply.

    Raises:
        InputError: without such a file, or if it is not a JSONL of esdmon.
    """
    return replay_with_faults(run, rules).alerts


@explain_wrong_calls
def replay_with_faults(run: str | Path, rules: Iterable[AlertRule]) -> Replayed:
    """Return the alerts that rules would have raised in a run, as `replay` does, and the rules that have failed.

    Raises:
        InputError: as for `replay`.
    """
    rules = tuple(rules)
    managers: dict[RunState, AlertManager] = {}
    faults: list[Faults] = []
    alerts: list[Alert] = []
    for each, event in events_by_run(run):
        if not isinstance(event, Report):
            continue
        if each not in managers:
            faults.append(Faults(during="replay"))
            managers[each] = AlertManager(rules, faults=faults[-1])
        alerts += managers[each].take(event, time=math.nan)
    summed: dict[str, Fault] = {}
    for fault in chain.from_iterable(faults):
        before = summed.get(fault.who)
        summed[fault.who] = fault if before is None else replace(fault, count=before.count + fault.count)
    return Replayed(alerts, tuple(summed.values()))
