"""Rules that look at the history, and the book that keeps what they found. Knows records only."""

from esdmon.alerts.book import AlertBook as AlertBook
from esdmon.alerts.rules import BUILT_IN as BUILT_IN
from esdmon.alerts.rules import AlertRule as AlertRule
from esdmon.alerts.rules import History as History
