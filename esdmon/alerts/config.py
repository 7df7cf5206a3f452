"""Choose the alert rules and actions, in code or by a TOML file.

    [rules.over_regularized]
    for = 5                 # consecutive checks before it fires; also clear, severity, layers, exclude, enabled
    alpha = 1.9             # a threshold of the rule
    severity = "error"

    [rules.phase_regression]
    enabled = false

    [actions]
    webhook = "$SLACK_WEBHOOK"
    stop_training = ["non_finite"]
    save_checkpoint = ["rank_collapse"]

Rules that the file does not name keep their defaults.
"""

from __future__ import annotations

import inspect
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from esdmon.alerts.rule import AlertRule
from esdmon.errors import InputError, expand_home, nearest
from esdmon.records import Severity

_TABLES = ("rules", "actions")
_ACTIONS = ("webhook", "stop_training", "save_checkpoint")
_OF_EVERY_RULE = ("enabled", "for", "clear", "severity", "layers", "exclude")
_OFF = " alerts=None checks no rule."
_OWN_RULES = " A rule of your own is known here where a plugin registers it."
_SEVERITIES: tuple[str, ...] = get_args(Severity)


@dataclass(frozen=True, slots=True)
class AlertConfig:
    """The rules to run, and what their alerts trigger."""

    rules: tuple[AlertRule, ...]
    stop_on: tuple[str, ...] = ()
    """Names of rules that end the training."""
    save_on: tuple[str, ...] = ()
    """Names of rules that save a checkpoint."""
    webhook: str = ""
    """Address to post alerts to, or `$NAME` of the environment variable that holds it; empty for none."""


def select_rules(alerts: Iterable[object], known: Mapping[str, AlertRule]) -> tuple[AlertRule, ...]:
    """Return the rules given as "default" (all known ones), by name, or as `AlertRule` objects.

    A rule of the user replaces the known rule of the same name and takes its place in the order. The order matters:
    rules on causes mute the rules on consequences that come later.

    Raises:
        InputError: for anything else, and for two different rules of the user with the same name.
    """
    given = list(alerts)
    own: dict[str, AlertRule] = {}
    for item in given:
        if isinstance(item, AlertRule) and item is not known.get(item.name) and own.setdefault(item.name, item) != item:
            raise InputError(f"alerts= contains two rules of your own named {item.name!r}; rename one of them")
    with_default = "default" in [item for item in given if isinstance(item, str)]
    chosen: dict[str, AlertRule] = {}
    for item in given:
        if isinstance(item, AlertRule):
            rules = [] if with_default and item.name in known else [item]
        elif item == "default":
            rules = list(known.values())
        elif isinstance(item, str) and item in known:
            rules = [known[item]]
        elif callable(item):
            name = getattr(item, "__name__", "rule")
            raise InputError(f"alerts= contains the function {name}: give AlertRule({name!r}, {name})")
        else:
            names = ("default", *known)
            remedy = _OFF if str(item).lower() in ("none", "off", "no") else nearest(str(item), names)
            msg = f"unknown rule {item!r} in alerts=; valid names: {', '.join(names)}.{remedy}"
            raise InputError(msg)
        chosen |= {rule.name: own.get(rule.name, rule) for rule in rules if rule.name not in chosen}
    return tuple(chosen.values())


def check_names(what: str, names: Iterable[object], rules: Iterable[str]) -> tuple[str, ...]:
    """Return the names of rules as a tuple, after checking that all of these rules are in use.

    Args:
        what: the option that has the names, for the message.
        names: the names to check.
        rules: the rules in use.

    Raises:
        InputError: for the first name that is not in use.
    """
    known, given = list(rules), list(names)
    for name in given:
        if name not in known:
            in_use = ", ".join(known) or "none"
            msg = f"{what}={name!r} names no rule in use; rules in use: {in_use}.{nearest(str(name), known)}"
            raise InputError(msg)
    return tuple(map(str, given))


def load_config(path: str | Path, known: Mapping[str, AlertRule]) -> AlertConfig:
    """Load and validate a TOML file of rules and actions.

    Args:
        path: the file; `~` is expanded.
        known: the rules by name, with their defaults.

    Raises:
        InputError: if the file cannot be read, or for the first wrong key or value; the message names file and key, and
            says what is allowed.
    """
    tables = _read_toml(path)
    file = _File(str(path))
    file.check_keys("", tables, _TABLES, instead={name: f"rules.{name}" for name in known})
    given = file.table("rules", tables)
    file.check_keys("rules", given, known, hint=_OWN_RULES)
    rules: list[AlertRule] = []
    for name, rule in known.items():
        table = file.table(f"rules.{name}", given, keys=_keys(rule))
        configured = _configure(rule, table, file) if table else rule
        if configured is not None:
            rules.append(configured)
    actions = file.table("actions", tables)
    file.check_keys("actions", actions, _ACTIONS)
    in_use = [rule.name for rule in rules]
    return AlertConfig(
        tuple(rules),
        stop_on=file.names("actions.stop_training", actions, in_use),
        save_on=file.names("actions.save_checkpoint", actions, in_use),
        webhook=file.text("actions.webhook", actions),
    )


def _keys(rule: AlertRule) -> tuple[str, ...]:
    """Return the keys that the table of a rule may have."""
    return (*_OF_EVERY_RULE, *rule.thresholds)


def _read_toml(path: str | Path) -> dict[str, Any]:
    try:
        return tomllib.loads(expand_home(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"alerts={str(path)!r}: file not found") from error
    except UnicodeDecodeError as error:
        raise InputError(f"alerts={str(path)!r} is not a text in UTF-8, as TOML is: see byte {error.start}") from error
    except OSError as error:
        raise InputError(f"alerts={str(path)!r} cannot be read: {error.strerror or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error


def _configure(rule: AlertRule, table: Mapping[str, Any], file: _File) -> AlertRule | None:
    """Return a rule with the changes in its table; None where the table disables it."""
    where = f"rules.{rule.name}"
    file.check_keys(where, table, _keys(rule), instead={"checks": "for"})
    fields: dict[str, tuple[str, Callable[[str, object], object]]] = {
        "for": ("checks", file.count),
        "clear": ("clear", file.count),
        "severity": ("severity", file.severity),
        "layers": ("layers", file.patterns),
        "exclude": ("exclude", file.patterns),
    }
    changes: dict[str, Any] = {
        name: check(f"{where}.{key}", table[key]) for key, (name, check) in fields.items() if key in table
    }
    given = {
        name: file.threshold(f"{where}.{name}", table[name], default)
        for name, default in rule.thresholds.items()
        if name in table
    }
    if given:
        changes["find"] = partial(rule.find, **given)
    is_enabled = file.flag(f"{where}.enabled", table.get("enabled", True))
    return replace(rule, **changes) if is_enabled else None


@dataclass(frozen=True, slots=True)
class _File:
    """Validates values of a file; each method returns the value, or raises `InputError` with file and key."""

    path: str

    def check_keys(
        self,
        where: str,
        table: Mapping[str, Any],
        allowed: Iterable[str],
        *,
        instead: Mapping[str, str] | None = None,
        hint: str = "",
    ) -> None:
        """Check that a table has no other keys.

        Args:
            where: the name of the table; empty for the file.
            table: what it contains.
            allowed: the keys that it may have.
            instead: for some wrong keys, the right key.
            hint: end of the message if no allowed key is similar.
        """
        known = list(allowed)
        for key in table:
            if key not in known:
                named = f"{where}.{key}" if where else key
                right = (instead or {}).get(key)
                near = f" Did you mean {right!r}?" if right else nearest(key, known) or hint
                self.refuse(f"unknown key {named!r}; valid keys: {', '.join(known)}.{near}")

    def table(self, where: str, tables: Mapping[str, Any], *, keys: Iterable[str] = ()) -> Mapping[str, Any]:
        value: Any = tables.get(where.rpartition(".")[2], {})
        if not isinstance(value, dict):
            holds = f" with the keys {', '.join(keys)}" if keys else ""
            self.refuse(f"{where} must be a table, [{where}]{holds}; got {value!r}")
        return value

    def names(self, where: str, table: Mapping[str, Any], rules: list[str]) -> tuple[str, ...]:
        value = table.get(where.rpartition(".")[2], [])
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list):
            self.refuse(f"{where} must be a list of rule names; got {value!r}")
        try:
            return check_names(where, names, rules)
        except InputError as error:
            self.refuse(str(error))

    def text(self, where: str, table: Mapping[str, Any]) -> str:
        value = table.get(where.rpartition(".")[2], "")
        if not isinstance(value, str):
            self.refuse(f"{where} must be a string; got {value!r}")
        return value

    def count(self, where: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse(f"{where} must be a whole number of checks, 1 or more; got {value!r}")
        return value

    def severity(self, where: str, value: object) -> str:
        if not isinstance(value, str) or value not in _SEVERITIES:
            self.refuse(f"{where} must be one of {', '.join(_SEVERITIES)}; got {value!r}")
        return value

    def patterns(self, where: str, value: object) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(pattern, str) for pattern in value):
            self.refuse(f'{where} must be a list of patterns, such as ["encoder.*"]; got {value!r}')
        return tuple(value)

    def flag(self, where: str, value: object) -> bool:
        if not isinstance(value, bool):
            self.refuse(f"{where} must be true or false; got {value!r}")
        return value

    def threshold(self, where: str, value: Any, default: object) -> Any:
        """Return the value of a threshold, after checking it against the default.

        If the default is a whole number, the value must be a whole number of 1 or more; otherwise a number of 0 or
        more. If the default is below this minimum, no minimum applies. If the default is True, False or a string, the
        value must be of the same type. A threshold with any other default cannot be set in a file.
        """
        if isinstance(default, bool):
            return self.flag(where, value)
        if isinstance(default, str):
            if not isinstance(value, str):
                self.refuse(f"{where} must be a string (default {default!r}); got {value!r}")
            return value
        if not (default is None or default is inspect.Parameter.empty or isinstance(default, int | float)):
            self.refuse(
                f"{where} cannot be set in a file, since its default {default!r} is not a number, a string, true or "
                f"false; got {value!r}. Set it in Python, with functools.partial."
            )
        whole = isinstance(default, int)
        least = 1 if whole else 0
        is_free = isinstance(default, int | float) and default < least
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or (value < least and not is_free):
            allowed = f"{'a whole number' if whole else 'a number'}{'' if is_free else f', {least} or more'}"
            usual = "" if default is inspect.Parameter.empty else f" (default {default})"
            self.refuse(f"{where} must be {allowed}{usual}; got {value!r}")
        return value

    def refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.path}: {what}")
