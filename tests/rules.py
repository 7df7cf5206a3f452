"""A rule that finds something wrong with the model at each report: for tests of what is done about it."""

from collections.abc import Iterable

from esdmon.alerts import AlertRule, Finding, History


def _it_holds(_history: History) -> Iterable[Finding]:
    return [Finding("", "it holds")]


ALWAYS = AlertRule("always", _it_holds, checks=1, counts="reports")
