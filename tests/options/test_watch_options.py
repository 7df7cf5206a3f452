"""Options that cannot be used are refused before anything is opened."""

import inspect
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

import esdmon
from esdmon.alerts import AlertRule
from esdmon.options import WatchKeywords, WatchOptions
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
    arguments = (esdmon.watch.__doc__ or "").partition("Returns:")[0]
    described = re.findall(r"^        (\w+): ", arguments, re.MULTILINE)
    assert set(described) == set(signature.parameters)
    for name in OPTIONS:
        assert signature.parameters[name].default == getattr(WatchOptions(), name)
