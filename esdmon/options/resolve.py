"""What is given to `watch` as sinks and as alerts, as what a monitor takes."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from esdmon.alerts import Actions, AlertRule
from esdmon.alerts.config import AlertConfig, check_names, load_config, select_rules
from esdmon.errors import InputError, as_list, unwritable
from esdmon.isolation import describe
from esdmon.notice import notice
from esdmon.plugins import Plugins
from esdmon.plugins.manager import shown
from esdmon.records import Alert
from esdmon.sinks import Sink

Sinks = str | Sink | Sequence[str | Sink] | None
Alerts = str | os.PathLike[str] | Sequence[str | AlertRule] | None

_log = logging.getLogger("esdmon")


def listed(sinks: Sinks) -> Sequence[str | Sink]:
    """What is given as `sinks=`, as a list."""
    if sinks is None:
        return []
    return [sinks] if isinstance(sinks, str) or not isinstance(sinks, Sequence) else sinks


def check_sinks(sinks: Sinks, known: Plugins) -> None:
    """Check that each can be a sink, without opening it.

    Raises:
        InputError: for one that cannot.
    """
    for spec in listed(sinks):
        if spec != "auto":
            known.check_sink(spec)


def open_sinks(sinks: Sinks, settings: AlertConfig, known: Plugins) -> list[tuple[str, Sink]]:
    """Each with its name in messages; where one cannot be opened, those before it are closed again.

    Raises:
        InputError: for one that cannot be opened.
    """
    several = [
        (each, spec == "auto") for spec in listed(sinks) for each in (_automatic(known) if spec == "auto" else [spec])
    ]
    if settings.webhook:
        several.append((f"webhook:{settings.webhook}", False))
    opened: list[tuple[str, Sink]] = []
    try:
        for spec, is_automatic in several:
            try:
                sink = known.open_sink(spec)
            except Exception as error:
                if not is_automatic:
                    raise
                _log.warning("esdmon: readings do not go to %s: %s.", spec, describe(error))
                continue
            opened.append((_name(spec, known), sink))
    except BaseException:
        for _, sink in opened:
            sink.close()
        raise
    return opened


def _name(spec: str | Sink, known: Plugins) -> str:
    """What a sink is called in messages, after the word."""
    if not isinstance(spec, str):
        return type(spec).__name__
    return f"{shown(spec)}{known.whose('sink', spec.partition(':')[0])}"


def _automatic(known: Plugins) -> list[str | Sink]:
    name = f"runs/esdmon-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    for n in itertools.count(1):
        folder = Path(name if n == 1 else f"{name}-{n}")
        try:
            # Made here, and not by a sink, so that of several runs started in one second each gets its own.
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise unwritable(str(folder), error) from error
    sinks: list[str | Sink] = [f"jsonl:{folder / 'esdmon.jsonl'}"]
    how = f"`esdmon alerts replay {folder / 'esdmon.jsonl'}` asks the alert rules again"
    # A user who has begun a run of Weights & Biases looks there; who has not imported it, has not.
    if "wandb" in known.schemes and getattr(sys.modules.get("wandb"), "run", None) is not None:
        sinks.insert(0, "wandb")
        how = "they stand in the active run of Weights & Biases"
    elif "tensorboard" in known.schemes and find_spec("tensorboard") is not None:
        sinks.insert(0, f"tensorboard:{folder}")
        how = f"`tensorboard --logdir {folder.parent}` shows them"
    if "wandb" in known.schemes and "wandb" not in sinks and find_spec("wandb") is not None:
        sinks.append("wandb:auto")  # for a run that is begun later
    notice(f"readings go to {folder.absolute()}; {how}.")
    return sinks


def settle(
    alerts: Alerts,
    stop_on: str | Sequence[str],
    save_on: str | Sequence[str],
    known: Plugins,
) -> AlertConfig:
    """What a file says and what is said in code, together."""
    if isinstance(alerts, os.PathLike) or (isinstance(alerts, str) and alerts.endswith(".toml")):
        settings = load_config(Path(alerts), known.rules)
    else:
        given = () if alerts is None else as_list("alerts", alerts, "the names of rules, or rules")
        settings = AlertConfig(select_rules(given, known.rules))
    asked = [rule.name for rule in settings.rules]
    stops, saves = (
        check_names(name, as_list(name, value, "names of alert rules"), asked)
        for name, value in (("stop_on", stop_on), ("save_on", save_on))
    )
    return replace(settings, stop_on=(*settings.stop_on, *stops), save_on=(*settings.save_on, *saves))


def askable(settings: AlertConfig, measures: Sequence[str]) -> list[AlertRule]:
    """Without those that look at measures which are not taken.

    Raises:
        InputError: where one of those is to end the training, or to save a checkpoint: it never would.
    """
    asked = []
    for rule in settings.rules:
        missing = ", ".join(name for name in rule.needs if name not in measures)
        if not missing:
            asked.append(rule)
        elif rule.name in (*settings.stop_on, *settings.save_on):
            raise InputError(f"the rule {rule.name}, which is to act, needs {missing}: add that to measures=")
        else:
            _log.info("esdmon: the rule %s is not asked: it needs %s in measures=", rule.name, missing)
    return asked


def actions_for(settings: AlertConfig, on_alert: Callable[[Alert], object] | None, known: Plugins) -> Actions:
    """What is done about an alert, by the settings, the user's function and the plugins.

    Raises:
        InputError: where that is no function.
    """
    check_on_alert(on_alert)
    calls: list[tuple[str, Callable[[Alert], object]]] = [] if on_alert is None else [("on_alert", on_alert)]
    return Actions(
        stop_on=frozenset(settings.stop_on),
        save_on=frozenset(settings.save_on),
        calls=(*calls, ("plugins", known.on_alert)),
        asks_to_stop=known.requests_stop,
    )


def check_on_alert(on_alert: object) -> None:
    """Whether it can be called with an alert.

    Raises:
        InputError: where not.
    """
    if on_alert is not None and not callable(on_alert):
        raise InputError(f"on_alert= is a function that takes an Alert, got {on_alert!r}")
