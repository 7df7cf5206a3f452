import math

import pytest

from esdmon.alerts import BUILT_IN, AlertBook
from esdmon.records import Alert, LayerReport
from esdmon.spectrum import Phase

RULES = {rule.name: rule for rule in BUILT_IN}
SUSTAINED = ("over_regularized", "rank_collapse")


def reading(step: int, *, wrong: str | None, moved: float = 0.01) -> LayerReport:
    """A reading at which a rule's condition holds, or none does."""
    return LayerReport(
        name="fc1",
        status="ok",
        step=step,
        N=100,
        M=80,
        update_ratio=moved,
        phase=Phase.RANK_COLLAPSE if wrong == "rank_collapse" else Phase.HEAVY_TAILED,
        over_regularized=wrong == "over_regularized",
        measures={"alpha": 1.5, "alpha_high": 1.55, "alpha_stderr": 0.05, "hard_rank": 40.0},
    )


def found(rule: str, *readings: LayerReport) -> list[Alert]:
    return list(RULES[rule].find({"fc1": readings}))


@pytest.mark.parametrize("rule", SUSTAINED)
def test_fires_at_the_third_reading_in_a_row(rule: str) -> None:
    """Not before; it says since when, which layer, and what to do."""
    readings = [reading(step, wrong=rule) for step in (10, 20, 30)]
    assert found(rule, *readings[:2]) == []
    (alert,) = found(rule, reading(5, wrong=None), *readings)
    assert (alert.rule, alert.layer, alert.step, alert.since, alert.state) == (rule, "fc1", 30, 10, "firing")
    assert alert.message.startswith("fc1: ")
    assert "since step 10" in alert.message
    assert "ower" in alert.message


@pytest.mark.parametrize("rule", SUSTAINED)
def test_a_good_reading_between_starts_anew(rule: str) -> None:
    """Sustained means in a row."""
    steps = [(10, rule), (20, rule), (30, None), (40, rule), (50, rule)]
    assert found(rule, *(reading(step, wrong=wrong) for step, wrong in steps)) == []


@pytest.mark.parametrize("rule", SUSTAINED)
def test_readings_of_a_still_weight_do_not_count(rule: str) -> None:
    """Saying the same three times is not three witnesses."""
    first = reading(10, wrong=rule, moved=math.nan)
    assert found(rule, first, *(reading(step, wrong=rule, moved=0.0) for step in (20, 30, 40, 50))) == []


@pytest.mark.parametrize("rule", SUSTAINED)
def test_a_failed_reading_is_no_evidence_either_way(rule: str) -> None:
    """It neither counts nor ends the run."""
    failed = LayerReport("fc1", "failed", 25, "RuntimeError: x")
    readings = [reading(10, wrong=rule), reading(20, wrong=rule), failed, reading(30, wrong=rule)]
    assert len(found(rule, *readings)) == 1


def test_a_collapse_mutes_over_regularised() -> None:
    """Both cannot be said of one reading: a collapsed layer is not classified as heavy-tailed."""
    readings = [reading(step, wrong="rank_collapse") for step in (10, 20, 30)]
    assert found("over_regularized", *readings) == []


def test_the_book_tells_each_alert_once_and_its_end() -> None:
    """Begun, silence while it holds, ended, and begun again."""
    book = AlertBook()
    names = list(RULES)
    (alert,) = found("rank_collapse", *(reading(step, wrong="rank_collapse") for step in (10, 20, 30)))
    (begun,) = book.update([alert], rules=names, step=30, time=5.0)
    assert (begun.state, begun.time) == ("firing", 5.0)
    assert book.update([alert], rules=names, step=40, time=6.0) == []
    (ended,) = book.update([], rules=names, step=50, time=7.0)
    assert (ended.id, ended.state, ended.severity, ended.step, ended.time) == (alert.id, "resolved", "info", 50, 7.0)
    assert [again.state for again in book.update([alert], rules=names, step=60, time=8.0)] == ["firing"]


def test_a_rule_that_could_not_be_asked_ends_nothing() -> None:
    """Silence of a broken rule is no all-clear."""
    book = AlertBook()
    (alert,) = found("rank_collapse", *(reading(step, wrong="rank_collapse") for step in (10, 20, 30)))
    book.update([alert], rules=["rank_collapse"], step=30, time=0.0)
    assert book.update([], rules=["over_regularized"], step=40, time=0.0) == []


def test_a_nan_is_told_at_once_and_when_it_was_not_there() -> None:
    """One reading is enough; the last good step is where to go back to."""
    bad = LayerReport("fc1", "nonfinite", 20, "3 of 9 elements are NaN or infinite")
    (alert,) = found("non_finite", reading(10, wrong=None), bad)
    assert (alert.severity, alert.step, alert.layer) == ("error", 20, "fc1")
    assert alert.message.startswith("fc1: 3 of 9 elements are NaN or infinite at step 20; at step 10 it was not so.")
    assert found("non_finite", bad, reading(30, wrong=None)) == []
