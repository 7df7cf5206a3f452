"""The arguments of a callback."""

import copy
from pathlib import Path

import numpy as np
import pytest

from esdmon.errors import InputError
from esdmon.sinks import MemorySink
from esdmon.trainers.options import CallbackOptions


def test_only_chosen_options_are_kept() -> None:
    """A command line passes all of them; numbers of numpy and paths become plain."""
    given = {"budget": 0.01, "exclude": [], "max_tags": 5, "reference": Path("a.pt")}
    options = CallbackOptions(every=np.int64(3), sinks="auto", options=given)  # type: ignore[arg-type]
    assert options.chosen == {"every": 3, "max_tags": 5, "reference": "a.pt"}
    assert type(options.chosen["every"]) is int


def test_json_holds_what_it_can_and_no_address() -> None:
    """Names of the others are listed: functions, sinks of the user's, addresses."""
    sinks = ["webhook:https://127.0.0.1:1/hush", "jsonl:a.jsonl"]
    options = CallbackOptions(every=3, sinks=sinks, options={"on_alert": print, "mode": "sync"})
    assert options.json_arguments() == ({"every": 3, "mode": "sync", "sinks": ["jsonl:a.jsonl"]}, ["on_alert", "sinks"])
    objects = CallbackOptions(every=lambda step: step == 1, sinks=MemorySink(), options={})
    assert objects.json_arguments() == ({}, ["every", "sinks"])


def test_options_are_updated_but_for_those_to_keep() -> None:
    """Sinks too are those of the newer options, unless they are to be kept."""
    older = CallbackOptions(every=3, sinks="jsonl:a", options={"on_alert": print, "mode": "sync"})
    newer = CallbackOptions(every=5, sinks=None, options={"mode": "thread", "max_tags": 5})
    merged = older.updated(newer, keep={"mode"})
    assert merged.chosen == {"every": 5, "on_alert": print, "mode": "sync", "max_tags": 5}
    assert merged.sinks == ()
    assert older.updated(newer, keep={"sinks"}).sinks == ("jsonl:a",)


def test_copies_share_the_options() -> None:
    """A sink of the user's is not copied with a callback."""
    options = CallbackOptions(every=3, sinks=MemorySink(), options={})
    assert copy.deepcopy(options) is options


def test_an_unknown_option_raises() -> None:
    """With the option that may be meant."""
    with pytest.raises(InputError, match=r"unknown option evry=\. Did you mean 'every'"):
        CallbackOptions(every=3, sinks=None, options={"evry": 3})


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("run_dir", 'sinks= says where readings go: "tensorboard:DIR"'),
        ("webhook", "sinks= says where readings go"),
        ("log_interval", "every= says how many steps"),
        ("log_every", "Did you mean 'every'"),
        ("modules", "layers= says what is read"),
        ("device", r"Options here: every, .*, plugins\.$"),
        ("run", r"Options here: every, .*, plugins\.$"),
    ],
)
def test_an_unknown_option_without_a_near_name_has_a_remedy(name: str, remedy: str) -> None:
    """The option that does it, or all options; no name that is only a little alike."""
    with pytest.raises(InputError, match=rf"^unknown option {name}=\. {remedy}"):
        CallbackOptions(every=3, sinks=None, options={name: "x"})


def test_a_default_that_was_given_counts() -> None:
    """A checkpoint of a run with the default names it, and a callback with another value does not win over it."""
    older = CallbackOptions(every=3, sinks="auto", options={"budget": 0.5, "alerts": None})
    newer = CallbackOptions(every=3, sinks="auto", options={"budget": 0.01, "alerts": "default"})
    assert newer.json_arguments()[0] == {"every": 3, "budget": 0.01, "alerts": "default", "sinks": ["auto"]}
    merged = older.updated(newer, keep=())
    assert (merged.checked.budget, merged.checked.alerts) == (0.01, "default")


def test_generators_are_kept_as_what_they_gave() -> None:
    """Options are read again with each model."""
    options = CallbackOptions(every=3, sinks="auto", options={"layers": (name for name in ("a", "b"))})
    assert options.chosen["layers"] == ("a", "b")
