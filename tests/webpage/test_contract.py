"""The JSON that the page reads."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon import Phase
from esdmon.records import LayerFinding
from esdmon.records.colours import PHASE_HEX, SEVERITY_HEX
from esdmon.webpage import assets, contract, problems
from esdmon.webpage.codes import CHARACTERS, STATUS_CODES, code_of, rows_of
from tests.webpage.made import a_layer, alert_at


def test_the_page_has_the_phases_of_the_records() -> None:
    """In their order, with the characters, letters and colours of the map without scripts."""
    found = re.findall(r"\{code: '(.)', letter: '(.)', name: '([^']+)', colour: '(#\w+)'\},", assets.script())
    assert found[: len(Phase)] == [
        (CHARACTERS[phase.code], letter, phase.value, PHASE_HEX[phase])
        for phase, letter in zip(Phase, "RBSDHCU", strict=True)
    ]
    severities = re.search(r"const SEVERITIES = \{(.*)\};", assets.script())
    assert severities is not None
    assert dict(re.findall(r"(\w+): '(#\w+)'", severities[1])) == SEVERITY_HEX


def test_the_page_knows_each_character() -> None:
    """Also those of layers without numbers."""
    assert set(CHARACTERS.values()) == set(re.findall(r"\{code: '(.)'", assets.script()))


def test_the_script_makes_no_html_and_no_code_of_texts() -> None:
    """Names of layers are texts for it."""
    code = re.sub(r"//.*", "", assets.script())
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "import ",
        "http",
    ):
        assert way not in code.replace("httpSource", ""), way


@pytest.mark.parametrize("status", ["nonfinite", "degenerate", "failed", "skipped"])
def test_a_layer_without_numbers_has_a_character_of_its_own(status: str) -> None:
    """It is not shown as unclassified."""
    code = code_of(replace(a_layer(), status=status))  # type: ignore[arg-type]
    assert CHARACTERS[code] not in "012345-."
    assert rows_of(np.array([[code, 0]], dtype=np.int8)) == [CHARACTERS[code], "0"]


@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True), st.integers(2, 50))
def test_what_is_thinned_keeps_both_ends(steps: list[int], limit: int) -> None:
    """And no more than the limit, in order."""
    steps.sort()
    chosen = contract.spread(steps, limit)
    assert chosen == sorted(set(chosen))
    assert len(chosen) <= limit
    assert {chosen[0], chosen[-1]} == {0, len(steps) - 1}


def test_columns_at_changes_of_a_phase_are_kept() -> None:
    """Where they fit, at the step itself."""
    codes = np.zeros((1000, 3), dtype=np.int8)
    codes[777:, 1] = 2
    chosen = contract.choose_columns(range(10, 10_010, 10), codes, 20)
    assert len(chosen) <= 20
    assert {0, 777, 999} <= set(chosen)


def test_layers_are_grouped_by_kind_and_ordered_by_depth() -> None:
    """A kind of fewer than three layers makes no group."""
    names = ["inp", "h.10.fc", "h.9.fc", "h.9.out", "h.0.fc", "h.10.out", "head"]
    layers = [contract.Layer.unread(name) for name in names]
    found = [(group["kind"], [names[row] for row in group["rows"]]) for group in contract.groups(layers)]
    assert found == [
        ("", ["inp"]),
        ("h.*.fc", ["h.0.fc", "h.9.fc", "h.10.fc"]),
        ("", ["h.9.out", "h.10.out", "head"]),
    ]


def test_what_is_wrong_now_names_layer_step_and_remedy() -> None:
    """The most severe first; what is resolved is not among it."""
    alerts = [
        contract.alert_of(alert, alert.step)
        for alert in (
            alert_at(30, "a", rule="norm_decay"),
            alert_at(40, "b"),
            replace(alert_at(50, "c", rule="dead_layer"), severity="warning"),
            alert_at(60, "a", rule="norm_decay", state="resolved"),
        )
    ]
    now = problems.now(alerts, 60, {"a": "2", "b": "5", "c": "0"})
    assert (now["level"], now["title"]) == ("error", "2 problems now, at step 60")
    assert [(item["layer"], item["since"], item["title"]) for item in now["items"]] == [
        ("b", 30, "b: rank collapse since step 30"),
        ("c", 40, "c: dead layer since step 40"),
    ]
    assert now["items"][0]["text"] == "Rank 40 of 64, in 3 checks since step 30. Lower the weight decay."
    notice = contract.alert_of(replace(alert_at(50, "c", rule="dead_layer"), severity="info"), 50)
    now = problems.now([notice], 60, {"c": "0"})
    (item,) = now["items"]
    assert (now["level"], now["title"]) == ("info", "1 notice now, at step 60; no warning")
    assert item["title"] == "c: dead layer since step 40, a notice"


def test_an_alert_that_has_grown_says_of_which_layer_it_speaks() -> None:
    """Its title names all layers, its text those that joined."""
    alert = replace(alert_at(40, "b"), layers=("a", "b"), message="b: rank_collapse: rank 40 of 64. Wait.")
    (item,) = problems.now([contract.alert_of(alert, 40)], 60, {})["items"]
    assert (item["title"], item["text"]) == ("a, b: rank collapse since step 30", "b: Rank 40 of 64. Wait.")
    assert item["lines"] == []  # of an older version
    parts = (LayerFinding("a", 10, "rank 60 of 64"), LayerFinding("b", 30, "rank 40 of 64"))
    (item,) = problems.now([contract.alert_of(replace(alert, by_layer=parts), 40)], 60, {})["items"]
    assert item["lines"] == ["a since step 10: rank 60 of 64", "b since step 30: rank 40 of 64"]


def test_a_quiet_run_says_so() -> None:
    """With what was before, if anything."""
    assert problems.now([], 60, {"a": "2"})["title"] == "All quiet at step 60: no alert has fired."
    records = [alert_at(30, "a"), alert_at(50, "a", state="resolved")]
    alerts = [contract.alert_of(alert, alert.step) for alert in records]
    title = "All quiet at step 60. 1 earlier alert is resolved; the last was rank collapse of a, from step 40 to 50."
    assert problems.now(alerts, 60, {"a": "2"})["title"] == title
    assert problems.now([], None, {})["title"].startswith("No reading yet")


def test_a_layer_with_nan_is_wrong_without_an_alert() -> None:
    """Rules may be switched off."""
    now = problems.now([], 60, {"a": "2", "b": CHARACTERS[STATUS_CODES["nonfinite"]]})
    assert [item["title"] for item in now["items"]] == ["b: NaN or infinity in the weight at step 60"]


def test_of_many_alerts_those_that_fire_are_kept() -> None:
    """And the latest of the others; the number of those left out is given."""
    old = contract.alert_of(alert_at(20, "old"), 20)
    pairs = [(alert_at(k, f"l{k}"), alert_at(k + 5, f"l{k}", state="resolved")) for k in range(30, 3000, 10)]
    alerts = [old, *(contract.alert_of(alert, alert.step) for pair in pairs for alert in pair)]
    view = contract.overview([], [3000], [], alerts, {})
    assert len(view["alerts"]) == contract.MAX_ALERTS
    assert view["alerts"][0] == old
    assert view["alerts"][-1] == alerts[-1]
    assert view["alerts_left_out"] == len(alerts) - contract.MAX_ALERTS


def test_the_steps_of_an_alert_are_those_of_the_axis() -> None:
    """A Trainer counts differently."""
    found = contract.alert_of(alert_at(40, "a"), 20)
    assert (found["step"], found["since"]) == (20, 15)


def test_a_frame_has_all_that_is_drawn() -> None:
    """And is JSON, though some of it is undefined."""
    layer = replace(a_layer(), measures={**a_layer().measures, "alpha": math.nan})
    frame = json.loads(json.dumps(contract.frame_of(layer), allow_nan=False))
    assert layer.esd is not None
    assert sum(frame["counts"]) == layer.n_eigenvalues
    assert frame["top"][0] == pytest.approx(layer.measures["lambda_max"], rel=1e-3)
    assert (frame["M"], frame["N"], frame["alpha"]) == (layer.M, layer.N, None)
    assert frame["bulk_edge"] == pytest.approx(layer.measures["bulk_edge"], rel=1e-3)
    with pytest.raises(ValueError, match="fc has no histogram"):
        contract.frame_of(replace(layer, esd=None))
