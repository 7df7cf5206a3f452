"""Rules chosen in code, and by a TOML file: what it may contain, and the errors where it is wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from esdmon.alerts import BUILT_IN_RULES, AlertRule, Finding, History
from esdmon.alerts.config import load_config, select_rules
from esdmon.errors import InputError
from tests.alerts.histories import RULES, alerts_of, reading, report

FILE = """
[rules.stable_rank_drop]
for = 5
clear = 1
severity = "critical"
factor = 4
layers = ["encoder.*"]
exclude = ["encoder.0"]

[rules.stale_monitor]
due_steps = 20

[rules.phase_regression]
enabled = false

[actions]
webhook = "$HOOK"
stop_training = ["non_finite"]
save_checkpoint = "rank_collapse"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "alerts.toml"
    path.write_text(text)
    return path


def test_a_file_says_what_differs(tmp_path: Path) -> None:
    """All other rules keep their defaults."""
    config = load_config(write(tmp_path, FILE), RULES)
    rules = {rule.name: rule for rule in config.rules}
    assert rules.keys() == RULES.keys() - {"phase_regression"}
    drop = rules["stable_rank_drop"]
    assert (drop.checks, drop.clear, drop.severity) == (5, 1, "critical")
    assert (drop.layers, drop.exclude) == (("encoder.*",), ("encoder.0",))
    assert drop.thresholds == {"factor": 4, "back": 1.5}
    assert (rules["stale_monitor"].checks, rules["stale_monitor"].thresholds) == (3, {"due_steps": 20})
    assert rules["non_finite"] is RULES["non_finite"]
    assert (config.stop_on, config.save_on, config.webhook) == (("non_finite",), ("rank_collapse",), "$HOOK")


@pytest.mark.parametrize(("factor", "fires"), [(2.0, True), (5.0, False)])
def test_a_threshold_is_heeded(factor: float, fires: bool, tmp_path: Path) -> None:  # noqa: FBT001
    """A fall to a third."""
    path = write(tmp_path, f"[rules.stable_rank_drop]\nfactor = {factor}")
    (rule,) = [rule for rule in load_config(path, RULES).rules if rule.name == "stable_rank_drop"]
    values = [21.0] * 10 + [7.0] * 5
    readings = [reading(step, measures={"stable_rank": value}) for step, value in enumerate(values, start=1)]
    assert bool(alerts_of(rule, (report(layer.step, layer) for layer in readings))) == fires


@pytest.mark.parametrize("name", RULES)
def test_every_threshold_of_every_rule_can_be_set_in_a_file(name: str, tmp_path: Path) -> None:
    """To what it is, which changes nothing."""
    rule = RULES[name]
    lines = [f"{key} = {value}" for key, value in rule.thresholds.items()]
    path = write(tmp_path, "\n".join([f"[rules.{name}]", *lines]))
    (same,) = [rule for rule in load_config(path, RULES).rules if rule.name == name]
    assert (same.thresholds, same.page) == (rule.thresholds, rule.page)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), RULES).rules == BUILT_IN_RULES


def _own(
    _history: History,
    *,
    limit: float = -3.0,
    least: int = 0,
    strict: bool = False,
    of: str = "a",
    names: tuple[str] = ("a",),
) -> list[Finding]:
    return [Finding("", f"{limit}, {least}, {strict}, {of}, {names}")]


OWN = {"own": AlertRule("own", _own)}


def test_thresholds_of_a_rule_of_ones_own_have_the_type_of_their_default(tmp_path: Path) -> None:
    """Numbers may be below 0 where the default is."""
    text = '[rules.own]\nlimit = -4.5\nleast = -1\nstrict = true\nof = "b"'
    (rule,) = load_config(write(tmp_path, text), OWN).rules
    assert rule.thresholds == {"limit": -4.5, "least": -1, "strict": True, "of": "b", "names": ("a",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[rules.own]\nlimt = 1",
            r"unknown key 'rules\.own\.limt'; valid keys: enabled, .*, names\. Did you mean 'limit'",
        ),
        ("[rules.own]\nchecks = 1", r"unknown key 'rules\.own\.checks'; .*\. Did you mean 'for'\?"),
        ("[own]\nlimit = 1", r"unknown key 'own'; .*\. Did you mean 'rules\.own'\?"),
        (
            "[rules.mine]",
            r"unknown key 'rules\.mine'; valid keys: own\. A rule of your own is known here where a plugin",
        ),
        ("[rules]\nown = 1", r"rules\.own must be a table, \[rules\.own\] with the keys enabled, .*, names; got 1"),
        ('[rules.own]\nlimit = "x"', r"rules\.own\.limit must be a number \(default -3\.0\); got 'x'"),
        ("[rules.own]\nstrict = 1", r"rules\.own\.strict must be true or false; got 1"),
        ("[rules.own]\nof = 1", r"rules\.own\.of must be a string \(default 'a'\); got 1"),
        ('[rules.own]\nnames = ["b"]', r"rules\.own\.names cannot be set in a file, since its default \('a',\) is no"),
    ],
)
def test_what_is_wrong_with_a_rule_of_ones_own_has_its_remedy(text: str, message: str, tmp_path: Path) -> None:
    """The keys that there are, or what the value must be."""
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path, text), OWN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rules]\nx = =", r"is not valid TOML: .*line 2"),
        ("[rulez.x]", r"unknown key 'rulez'; valid keys: rules, actions\. Did you mean 'rules'\?"),
        ("rules = 3", r"rules must be a table, \[rules\]; got 3"),
        (
            "[rules]\nrank_collapse = true",
            r"rules\.rank_collapse must be a table, \[rules\.rank_collapse\] with .*; got True",
        ),
        ("[rules.rank_colapse]", r"unknown key 'rules\.rank_colapse'; valid keys: .*Did you mean 'rank_collapse'"),
        ("[rules.rank_collapse]\nfr = 3", r"unknown key 'rules\.rank_collapse\.fr'; valid keys: enabled, for, clear"),
        (
            "[rules.rank_collapse]\nfor = 0",
            r"rules\.rank_collapse\.for must be a whole number of checks, 1 or more; got 0",
        ),
        (
            "[rules.rank_collapse]\nfor = true",
            r"rules\.rank_collapse\.for must be a whole number of checks, .*got True",
        ),
        (
            '[rules.rank_collapse]\nseverity = "bad"',
            r"severity must be one of info, warning, error, critical; got 'bad'",
        ),
        ("[rules.rank_collapse]\nseverity = [1]", r"severity must be one of info, warning.*; got \[1\]"),
        ('[rules.rank_collapse]\nenabled = "no"', r"enabled must be true or false; got 'no'"),
        ('[rules.rank_collapse]\nlayers = "a"', r"layers must be a list of patterns.*; got 'a'"),
        (
            '[rules.rank_collapse]\nback = "x"',
            r"rules\.rank_collapse\.back must be a number, 0 or more \(default 0\.97\); got 'x'",
        ),
        ("[rules.rank_collapse]\nback = nan", r"rules\.rank_collapse\.back must be a number.*; got nan"),
        (
            "[rules.stale_monitor]\ndue_steps = 1.5",
            r"rules\.stale_monitor\.due_steps must be a whole number, 1 or more \(default 50\); got 1\.5",
        ),
        ("[rules.stale_monitor]\ndue_steps = 0", r"due_steps must be a whole number, 1 or more \(default 50\); got 0"),
        ("[rules.norm_explosion]\nfactor = -1.0", r"factor must be a number, 0 or more \(default 3\.0\); got -1\.0"),
        ("[actions]\nstop = 1", r"unknown key 'actions\.stop'; valid keys: webhook, stop_training, save_checkpoint"),
        ("[actions]\nwebhook = 1", r"actions\.webhook must be a string; got 1"),
        ("[actions]\nstop_training = 1", r"actions\.stop_training must be a list of rule names; got 1"),
        ('[actions]\nstop_training = ["x"]', r"actions\.stop_training='x' names no rule in use"),
        (
            '[rules.non_finite]\nenabled = false\n[actions]\nstop_training = ["non_finite"]',
            "'non_finite' names no rule in use",
        ),
    ],
)
def test_errors_name_file_and_key_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as raised:
        load_config(path, RULES)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml'?: file not found"):
        load_config(tmp_path / "none.toml", RULES)
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_config(tmp_path, RULES)


def test_a_file_of_weights_is_not_toml(tmp_path: Path) -> None:
    """One line in the user's words."""
    (tmp_path / "a.pt").write_bytes(b"PK\x80")
    with pytest.raises(InputError, match=r"a\.pt' is not a text in UTF-8, as TOML is: see byte 2"):
        load_config(tmp_path / "a.pt", {})


def test_rules_are_chosen_by_name_and_of_ones_own() -> None:
    """In the order given; "default" are all others."""
    own = AlertRule("own", lambda _history: [])
    assert select_rules([own, "rank_collapse"], RULES) == (own, RULES["rank_collapse"])
    assert select_rules(["default", own], RULES) == (*BUILT_IN_RULES, own)
    assert select_rules([], RULES) == ()


@pytest.mark.parametrize("order", [("default", "own"), ("own", "default")])
def test_a_rule_of_ones_own_takes_the_place_of_the_one_of_its_name(order: tuple[str, ...]) -> None:
    """Also in the order, by which rules on causes mute others; wherever "default" stands."""
    own = replace(RULES["rank_collapse"], checks=1)
    expected = tuple(own if rule.name == own.name else rule for rule in BUILT_IN_RULES)
    assert select_rules([own if item == "own" else item for item in order], RULES) == expected
    assert expected != BUILT_IN_RULES
    assert select_rules(["rank_collapse", own], RULES) == (own,)
    assert select_rules(["default", RULES["rank_collapse"]], RULES) == BUILT_IN_RULES


@pytest.mark.parametrize(
    ("alerts", "message"),
    [
        (["rank_colapse"], r"unknown rule 'rank_colapse' in alerts=; .*Did you mean 'rank_collapse'"),
        ([3], "unknown rule 3 in alerts=; valid names: default, non_finite"),
        (["defualt"], r"unknown rule 'defualt' in alerts=; valid names: .*\. Did you mean 'default'\?$"),
        (["none"], r"unknown rule 'none' in alerts=; valid names: .*\. alerts=None checks no rule\.$"),
        ([alerts_of], r"alerts= contains the function alerts_of: give AlertRule\('alerts_of', alerts_of\)"),
        (
            [AlertRule("own", lambda _history: []), AlertRule("own", lambda _history: [])],
            "alerts= contains two rules of your own named 'own'; rename one of them",
        ),
        (
            ["default", replace(RULES["rank_collapse"], checks=1), replace(RULES["rank_collapse"], checks=2)],
            "alerts= contains two rules of your own named 'rank_collapse'; rename one of them",
        ),
    ],
)
def test_anything_but_a_rule_is_refused(alerts: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select_rules(alerts, RULES)


def test_the_file_in_the_documentation_is_one(tmp_path: Path) -> None:
    """Word for word."""
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(\[rules.*?)```", page, re.DOTALL)
    config = load_config(write(tmp_path, text), RULES)
    assert config.stop_on == ("non_finite",)
