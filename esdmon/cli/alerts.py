"""Run the subcommands of `esdmon alerts`: explain, check, replay."""

import json
import os
import textwrap
from collections import Counter
from pathlib import Path

from esdmon.alerts import AlertRule
from esdmon.alerts.config import AlertConfig, load_config, select_rules
from esdmon.errors import InputError, nearest
from esdmon.plugins import Plugins
from esdmon.records import severity_word
from esdmon.records.table import format_table
from esdmon.records.text import count
from esdmon.replay import replay_with_faults
from esdmon.sinks import WebhookSink

_WIDTH = 80
_RULE_FAILED = 3  # exit status: 1 and 2 say something else
_COUNTED = {"moves": "readings", "readings": "readings", "reports": "reports"}


def explain(names: list[str]) -> None:
    """Print the documentation of rules.

    Args:
        names: rules to print; all if empty.

    Raises:
        InputError: for an unknown rule.
    """
    known = Plugins().rules
    for name in names:
        if name not in known:
            raise InputError(f"unknown rule {name!r}. Available: {', '.join(known)}.{nearest(name, known)}")
    print("\n\n".join(_page(known[name]) for name in names or known))


def check(file: str) -> None:
    """Validate a TOML file, and print its rules and actions.

    Raises:
        InputError: for the first invalid entry.
    """
    settings = load_config(file, Plugins().rules)
    rows = [[rule.name, rule.severity, str(rule.checks), str(rule.clear), thresholds(rule)] for rule in settings.rules]
    print(format_table(["rule", "severity", "for", "clear", "thresholds"], rows, left=(0, 1, 4)))
    for words, rules in (("stops the training", settings.stop_on), ("saves a checkpoint", settings.save_on)):
        if rules:
            print(f"{words}: {', '.join(rules)}")
    if settings.webhook:
        print(f"alerts go to the webhook as well{_check_webhook(file, settings.webhook)}")


def _check_webhook(file: str, address: str) -> str:
    """Return a note if the address is in a variable that is not set here: it may be set where the training runs.

    Raises:
        InputError: for an address that cannot be posted to.
    """
    name = address[1:] if address.startswith("$") else ""
    if name.isidentifier() and not os.environ.get(name):
        return f"; the variable {name} is not set here"
    try:
        WebhookSink(address)
    except InputError as error:
        raise InputError(f"{file}: actions.webhook: {error}") from error
    return ""


def show(run: str, file: str | None, *, as_json: bool) -> int:
    """Print the alerts that rules would have raised in a run.

    Args:
        run: JSONL file of a run, or its folder.
        file: TOML file of rules; the default rules if None.
        as_json: print one JSON object for each alert.

    Returns:
        Exit status: 3 if a rule has failed, whatever else was found, since its alerts may be missing; 1 if a warning or
        an error would have fired, else 0.

    Raises:
        InputError: if the run or the file cannot be read.
    """
    known = Plugins().rules
    settings = load_config(file, known) if file else AlertConfig(select_rules(["default"], known))
    found = replay_with_faults(Path(run), settings.rules)
    if as_json:
        for alert in found.alerts:
            print(json.dumps({"schema": 1, "kind": "alert"} | alert.to_record(), ensure_ascii=False))
    else:
        for alert in found.alerts:
            print(textwrap.fill(str(alert), _WIDTH, subsequent_indent="    "))
        fired = Counter(alert.rule for alert in found.alerts if alert.state == "firing")
        counted = ", ".join(f"{rule} {times}" for rule, times in fired.most_common())
        print(f"{count(len(settings.rules), 'rule')}: {counted or 'no alert'}")
        for fault in found.faults:
            errors = f"{count(fault.count, 'error')}, the last at step {fault.step}: {fault.message}"
            text = f"{fault.who} failed: {errors}. Its alerts may be missing."
            print(textwrap.fill(text, _WIDTH, subsequent_indent="    "))
    if found.faults:
        return _RULE_FAILED
    return int(any(alert.severity != "info" for alert in found.alerts))


def persistence(rule: AlertRule) -> str:
    """Return for how long a rule must find the same before it fires: `after 3 readings in a row`."""
    return "at once" if rule.checks == 1 else f"after {rule.checks} {_COUNTED[rule.counts]} in a row"


def thresholds(rule: AlertRule) -> str:
    """Return the thresholds of a rule with their values: `factor = 3.0, back = 2.0`."""
    return ", ".join(f"{name} = {value}" for name, value in rule.thresholds.items())


def _page(rule: AlertRule) -> str:
    first, *details = rule.page.split("\n\n")
    advice = [f"What to do: {rule.advice}"] if rule.advice else []  # before the details, which may fill a screen
    limits = [f"Thresholds: {thresholds(rule)}"] if rule.thresholds else []
    paragraphs = [first, *advice, *details, *limits]
    return "\n\n".join(
        [f"{rule.name}: {severity_word(rule.severity)}, {persistence(rule)}", *map(_indented, paragraphs)]
    )


def _indented(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), _WIDTH, initial_indent="    ", subsequent_indent="    ")
