"""Options that cannot be used are refused before anything is opened."""

import inspect
import pickle
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

import esdmon
from esdmon.alerts import BUILT_IN_RULES, AlertRule, Finding, History
from esdmon.options import WatchKeywords, WatchOptions
from esdmon.options.alerts import rule_labels
from esdmon.options.watch_options import OPTIONS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tags": "200"}, "max_tags= must be a number of series, 0 or more, or None for all; got '200'"),
        ({"max_tags": -1}, "max_tags= must be a number of series"),
        ({"max_tags": True}, "max_tags= must be a number of series"),
        ({"first_step": -1}, "first_step= must be a number of steps, 0 or more; got -1"),
        ({"first_step": 1.5}, "first_step= must be a number of steps"),
        ({"strict": "yes"}, "strict= must be True or False; got 'yes'"),
        ({"hook": 1}, "hook= must be True or False; got 1"),
        ({"on_alert": 5}, "on_alert= must be a function that takes an Alert; got 5"),
    ],
    ids=str,
)
def test_a_wrong_option_opens_nothing(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before a folder is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(esdmon.InputError, match=message):
        esdmon.watch(torch.nn.Linear(64, 64), **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_rule_that_needs_an_unknown_measure_is_refused() -> None:
    """It would never be checked."""
    rule = AlertRule("thin", lambda _history: [], needs=("stable_rnk",))
    with pytest.raises(
        esdmon.InputError, match=r"thin needs the measure 'stable_rnk', which is unknown\. Did you mean"
    ):
        WatchOptions(alerts=[rule])


def test_a_changed_built_in_rule_is_used_in_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """With its own measures checked, its thresholds, and its name in messages without that of a plugin."""
    built_in = next(rule for rule in BUILT_IN_RULES if rule.name == "rank_collapse")
    with pytest.raises(esdmon.InputError, match="rank_collapse needs the measure 'stable_rnk', which is unknown"):
        WatchOptions(alerts=["default", replace(built_in, needs=("stable_rnk",))])

    def breaks(_history: History) -> list[Finding]:
        raise RuntimeError("own rule")

    own = replace(built_in, find=breaks, checks=1)
    with esdmon.watch(torch.nn.Linear(64, 64), every=1, sinks=None, alerts=["default", own], mode="sync") as monitor:
        monitor.step()
    assert [fault.who for fault in monitor.errors] == ["rule rank_collapse"]
    assert "rule rank_collapse failed at step 1: RuntimeError: own rule" in caplog.text


def test_a_rule_in_the_place_of_a_plugins_is_not_the_plugins() -> None:
    """In messages: what fails is the user's function. With another threshold it is still the plugin's."""

    class Plugin:
        @esdmon.hookimpl
        def esdmon_register_alert_rules(self) -> list[AlertRule]:
            return [registered]

    registered = AlertRule("thin", lambda _history: [])
    for own, label in (
        (replace(registered, find=lambda _history: ()), "rule thin"),
        (
            replace(registered, find=partial(registered.find)),
            "rule thin (plugin 'Plugin', esdmon_register_alert_rules)",
        ),
    ):
        options = WatchOptions(alerts=["default", own], plugins=[Plugin()])
        assert rule_labels(options.alert_config, options.known)("thin") == label


def test_generators_are_read_once() -> None:
    """Options are checked, and read again with the model; a copy has them too."""
    options = WatchOptions(
        layers=(name for name in ("a", "b")),  # type: ignore[arg-type]
        measures=(name for name in ("alpha",)),  # type: ignore[arg-type]
        stop_on=(name for name in ("non_finite",)),  # type: ignore[arg-type]
        plugins=iter(list[object]()),
    )
    for again in (options, replace(options, every=5), pickle.loads(pickle.dumps(options))):  # noqa: S301 -- our own
        assert again.selection.layers == ("a", "b")
        assert [measure.name for measure in again.chosen_measures] == ["alpha"]
        assert again.alert_config.stop_on == ("non_finite",)


def test_every_option_is_described_and_typed() -> None:
    """In the docstring of `watch`, and in what type checkers are given; `help()` spells them out in order."""
    signature = inspect.signature(esdmon.watch)
    assert set(get_type_hints(WatchKeywords)) == set(OPTIONS) - {"every", "sinks"}
    assert list(signature.parameters) == ["model", "optimizer", *OPTIONS, "hook", "first_step"]
    arguments = (inspect.getdoc(esdmon.watch) or "").partition("Returns:")[0]
    described = re.findall(r"^    (\w+): ", arguments, re.MULTILINE)
    assert set(described) == set(signature.parameters)
    for name in OPTIONS:
        assert signature.parameters[name].default == getattr(WatchOptions(), name)
