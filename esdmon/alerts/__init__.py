"""Alert rules, and when their alerts begin and end. Reads records only, no tensors.

`rule.py` defines rules and their input, `rules/` has the built-in rules, `history.py` keeps past readings,
`clear_checks.py` the steps of checks without a finding, `lifecycle.py` decides when an alert begins and ends,
`messages.py` writes its messages, `watchdog.py` raises an alert when no report arrives, `config.py` reads the TOML
file, `actions.py` lists what an alert may trigger.
"""

from esdmon.alerts.actions import Actions as Actions
from esdmon.alerts.lifecycle import AlertManager as AlertManager
from esdmon.alerts.rule import AlertRule as AlertRule
from esdmon.alerts.rule import Finding as Finding
from esdmon.alerts.rule import History as History
from esdmon.alerts.rules.builtin import BUILT_IN_RULES as BUILT_IN_RULES
from esdmon.alerts.watchdog import Watchdog as Watchdog
