"""Resolve `alerts=`, `stop_on=`, `save_on=` and `on_alert=`: to rules, and to what an alert causes."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from esdmon.alerts import Actions, AlertRule
from esdmon.alerts.config import AlertConfig, check_names, load_config, select_rules
from esdmon.errors import InputError, as_list, nearest
from esdmon.plugins import Plugins
from esdmon.records import Alert

Alerts: TypeAlias = str | os.PathLike[str] | Sequence[str | AlertRule] | None

_log = logging.getLogger("esdmon")


def alert_config(
    alerts: Alerts, known: Plugins, *, stop_on: str | Sequence[str], save_on: str | Sequence[str]
) -> AlertConfig:
    """Return the rules and actions of a TOML file or a list, with those that were given in code added.

    Raises:
        InputError: for a file that cannot be used, and for names of unknown rules.
    """
    if isinstance(alerts, os.PathLike) or (isinstance(alerts, str) and alerts.endswith(".toml")):
        config = load_config(Path(alerts), known.rules)
    else:
        given = () if alerts is None else as_list("alerts", alerts, "the names of rules, or rules")
        config = AlertConfig(select_rules(given, known.rules))
    for rule in config.rules:
        registered = known.rules.get(rule.name)
        for name in rule.needs:  # what a plugin's own rule needs goes unchecked
            if name not in known.measures and (registered is None or name not in registered.needs):
                hint = nearest(name, known.measures)
                raise InputError(f"the rule {rule.name} needs the measure {name!r}, which is unknown.{hint}")
    active = [rule.name for rule in config.rules]
    stops = check_names("stop_on", as_list("stop_on", stop_on, "names of alert rules"), active)
    saves = check_names("save_on", as_list("save_on", save_on, "names of alert rules"), active)
    return replace(config, stop_on=(*config.stop_on, *stops), save_on=(*config.save_on, *saves))


def usable_rules(config: AlertConfig, measures: Sequence[str]) -> list[AlertRule]:
    """Return the rules that need no other measures than those that are computed.

    Raises:
        InputError: where a rule that is to end the training or to save a checkpoint would never fire.
    """
    usable = []
    for rule in config.rules:
        missing = ", ".join(name for name in rule.needs if name not in measures)
        if not missing:
            usable.append(rule)
        elif rule.name in (*config.stop_on, *config.save_on):
            raise InputError(
                f"the rule {rule.name} has an action, but needs {missing}, which is not computed: add it to measures="
            )
        else:
            _log.info("esdmon: the rule %s is not checked, since it needs %s: add it to measures=", rule.name, missing)
    return usable


def rule_labels(config: AlertConfig, known: Plugins) -> Callable[[str], str]:
    """Return what names a rule in messages: with its plugin, unless another function has taken the rule's place."""
    own = {
        rule.name
        for rule in config.rules
        if rule.name in known.rules and rule.function is not known.rules[rule.name].function
    }
    return lambda name: f"rule {name}" if name in own else known.label("rule", name)


def actions_for(config: AlertConfig, on_alert: Callable[[Alert], object] | None, known: Plugins) -> Actions:
    """Return what an alert causes: by the configuration, the user's function and the plugins."""
    calls: list[tuple[str, Callable[[Alert], object]]] = [] if on_alert is None else [("on_alert", on_alert)]
    return Actions(
        stop_on=frozenset(config.stop_on),
        save_on=frozenset(config.save_on),
        calls=(*calls, ("plugins", known.on_alert)),
        asks_to_stop=known.requests_stop if known.may_stop else None,
    )
