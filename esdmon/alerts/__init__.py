"""Rules that look at the history, and the book that keeps what they found. Knows records only."""

from esdmon.alerts.actions import Actions as Actions
from esdmon.alerts.lifecycle import AlertManager as AlertManager
from esdmon.alerts.rule import AlertRule as AlertRule
from esdmon.alerts.rule import Finding as Finding
from esdmon.alerts.rule import History as History
from esdmon.alerts.rules.builtin import BUILT_IN_RULES as BUILT_IN_RULES
from esdmon.alerts.watchdog import Watchdog as Watchdog
