"""Alert rules and the life of the alerts that they raise. Reads records only, no tensors.

`rule.py` defines rules and what they read, `rules/` holds the built-in ones, `history.py` keeps the readings that they
look back on, `lifecycle.py` decides when an alert begins and ends, `messages.py` words it, `watchdog.py` notices that
no report arrives, `config.py` reads the TOML file, `actions.py` lists what an alert may trigger.
"""

from esdmon.alerts.actions import Actions as Actions
from esdmon.alerts.lifecycle import AlertManager as AlertManager
from esdmon.alerts.rule import AlertRule as AlertRule
from esdmon.alerts.rule import Finding as Finding
from esdmon.alerts.rule import History as History
from esdmon.alerts.rules.builtin import BUILT_IN_RULES as BUILT_IN_RULES
from esdmon.alerts.watchdog import Watchdog as Watchdog
