"""Which rules are asked, and what is done: chosen in code, or by a TOML file.

    [rules.over_regularized]
    for = 5                 # checks in a row before it fires; also clear, severity, layers, exclude, enabled
    alpha = 1.9             # a threshold of the rule
    severity = "error"

    [rules.phase_regression]
    enabled = false

    [actions]
    webhook = "$SLACK_WEBHOOK"
    stop_training = ["non_finite"]
    save_checkpoint = ["rank_collapse"]

Rules that the file does not name are asked as they are.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from esdmon.alerts.rule import AlertRule
from esdmon.errors import InputError, nearest
from esdmon.records import Severity

_TABLES = ("rules", "actions")
_ACTIONS = ("webhook", "stop_training", "save_checkpoint")
_OF_EVERY_RULE = {"for": "checks", "clear": "clear", "severity": "severity", "layers": "layers", "exclude": "exclude"}


@dataclass(frozen=True, slots=True)
class AlertConfig:
    """What a file says."""

    rules: tuple[AlertRule, ...]
    stop_on: tuple[str, ...] = ()
    save_on: tuple[str, ...] = ()
    webhook: str = ""


def select_rules(alerts: Iterable[object], known: Mapping[str, AlertRule]) -> tuple[AlertRule, ...]:
    """The rules that are meant by "default", by names, and by rules themselves.

    Raises:
        InputError: for anything else, and for two rules of one name.
    """
    chosen: dict[str, AlertRule] = {}
    for item in alerts:
        if isinstance(item, AlertRule):
            rules = [item]
        elif item == "default":
            rules = [rule for rule in known.values() if rule.name not in chosen]
        elif isinstance(item, str) and item in known:
            rules = [known[item]]
        else:
            msg = f"alerts={item!r} is no rule; there are {', '.join(known)}.{nearest(str(item), known)}"
            raise InputError(msg)
        for rule in rules:
            if rule.name in chosen and chosen[rule.name] is not rule:
                raise InputError(f"alerts= holds two rules {rule.name!r}: give them names of their own")
            chosen[rule.name] = rule
    return tuple(chosen.values())


def check_names(what: str, names: Iterable[object], rules: Iterable[str]) -> tuple[str, ...]:
    """Names of rules that are asked, as they are.

    Raises:
        InputError: for a name that is none of them.
    """
    known, given = list(rules), list(names)
    for name in given:
        if name not in known:
            there = ", ".join(known) or "none"
            msg = f"{what}={name!r} is no rule that is asked; those are {there}.{nearest(str(name), known)}"
            raise InputError(msg)
    return tuple(map(str, given))


def load_config(path: str | Path, known: Mapping[str, AlertRule]) -> AlertConfig:
    """The settings in a TOML file.

    Raises:
        InputError: where it cannot be read, and for each key and value that is wrong: it names file, key, what was got
            and what is allowed.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except FileNotFoundError as error:
        raise InputError(f"alerts={str(path)!r}: there is no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"alerts={str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is no TOML: {error}") from error
    check = _Check(str(path))
    check.keys("", tables, _TABLES)
    chosen = check.table("rules", tables)
    check.keys("rules", chosen, known)
    rules = [
        rule if name not in chosen else configured
        for name, rule in known.items()
        if (configured := _configure(rule, check.table(f"rules.{name}", chosen), check)) is not None
    ]
    actions = check.table("actions", tables)
    check.keys("actions", actions, _ACTIONS)
    asked = [rule.name for rule in rules]
    return AlertConfig(
        tuple(rules),
        stop_on=check.names("actions.stop_training", actions, asked),
        save_on=check.names("actions.save_checkpoint", actions, asked),
        webhook=check.text("actions.webhook", actions),
    )


def _configure(rule: AlertRule, table: Mapping[str, Any], check: _Check) -> AlertRule | None:
    """The rule as its table says; None where it is not to be asked."""
    where = f"rules.{rule.name}"
    thresholds = rule.thresholds
    check.keys(where, table, ("enabled", *_OF_EVERY_RULE, *thresholds))
    changes: dict[str, Any] = {}
    for key, field in _OF_EVERY_RULE.items():
        if key in table:
            changes[field] = check.value(f"{where}.{key}", table[key], field)
    given = {
        name: check.threshold(f"{where}.{name}", table[name], thresholds[name]) for name in thresholds if name in table
    }
    if given:
        changes["find"] = partial(rule.find, **given)
    if not check.value(f"{where}.enabled", table.get("enabled", True), "enabled"):
        return None
    return replace(rule, **changes)


@dataclass(frozen=True, slots=True)
class _Check:
    """Complaints that name the file."""

    path: str

    def keys(self, where: str, table: Mapping[str, Any], allowed: Iterable[str]) -> None:
        known = list(allowed)
        for key in table:
            if key not in known:
                named = f"{where}.{key}" if where else key
                self.refuse(f"{named} is no key of it; there are {', '.join(known)}.{nearest(key, known)}")

    def table(self, where: str, tables: Mapping[str, Any]) -> Mapping[str, Any]:
        value: Any = tables.get(where.rpartition(".")[2], {})
        if not isinstance(value, dict):
            self.refuse(f"{where} is a table, [{where}]; got {value!r}")
        return value

    def names(self, where: str, table: Mapping[str, Any], rules: list[str]) -> tuple[str, ...]:
        value = table.get(where.rpartition(".")[2], [])
        names = [value] if isinstance(value, str) else value
        try:
            return check_names(where, names, rules)
        except (InputError, TypeError) as error:
            self.refuse(str(error) if isinstance(error, InputError) else f"{where} is a list of names, got {value!r}")

    def text(self, where: str, table: Mapping[str, Any]) -> str:
        value = table.get(where.rpartition(".")[2], "")
        if not isinstance(value, str):
            self.refuse(f"{where} is a text, got {value!r}")
        return value

    def value(self, where: str, value: Any, kind: str) -> Any:
        good, allowed = _ALLOWED[kind]
        if not good(value):
            self.refuse(f"{where} = {value!r}: {allowed}")
        return tuple(value) if isinstance(value, list) else value

    def threshold(self, where: str, value: Any, default: object) -> Any:
        whole = isinstance(default, int)
        good = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or value < (1 if whole else 0):
            allowed = "a whole number, 1 or more" if whole else "a number, 0 or more"
            self.refuse(f"{where} = {value!r}: {allowed}; it is {default} where left out")
        return value

    def refuse(self, what: str) -> NoReturn:
        raise InputError(f"{self.path}: {what}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_patterns(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(pattern, str) for pattern in value)


_COUNT = (_is_count, "a whole number of checks, 1 or more")
_PATTERNS = (_is_patterns, 'a list of patterns, as ["encoder.*"]')
_SEVERITIES: tuple[str, ...] = get_args(Severity)
_ALLOWED: dict[str, tuple[Callable[[object], bool], str]] = {
    "checks": _COUNT,
    "clear": _COUNT,
    "severity": (_SEVERITIES.__contains__, f"one of {', '.join(_SEVERITIES)}"),
    "layers": _PATTERNS,
    "exclude": _PATTERNS,
    "enabled": (lambda value: isinstance(value, bool), "true or false"),
}
