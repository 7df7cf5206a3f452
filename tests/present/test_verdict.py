"""The verdict of a scan: one sentence, in which every layer is counted once."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.present.verdict import verdict
from esdmon.records import EQUAL, LayerReport
from esdmon.spectrum import Phase


def ok(phase: Phase, rank: int = 100, **fields: object) -> Callable[[str], LayerReport]:
    def make(name: str) -> LayerReport:
        given_fields = {"view": "weight", "over_regularized": False} | fields
        return LayerReport(
            name,
            "ok",
            0,
            N=200,
            M=100,
            phase=phase,
            view=str(given_fields["view"]),
            over_regularized=bool(given_fields["over_regularized"]),
            measures={"hard_rank": float(rank)},
        )

    return make


STATES: dict[str, Callable[[str], LayerReport]] = {
    "over-regularised": ok(Phase.HEAVY_TAILED, over_regularized=True),
    "near collapse": ok(Phase.BULK_DECAY, 96),
    "collapsed": ok(Phase.RANK_COLLAPSE, 60),
    "not finite": lambda name: LayerReport(name, "nonfinite", 0, "NaN"),
    "all zero": lambda name: LayerReport(name, "degenerate", 0, "all weights are zero"),
    "failed": lambda name: LayerReport(name, "failed", 0, "KeyError"),
    "with learned structure": ok(Phase.BULK_SPIKES, 97),
    "like noise": ok(Phase.RANDOM_LIKE),
    "unclassified": ok(Phase.UNCLASSIFIED),
    "equal to the reference": lambda name: LayerReport(name, "skipped", 0, EQUAL),
    "not read": lambda name: LayerReport(name, "skipped", 0, "packed"),
}


def test_faults_come_first_with_names_and_the_gravest_first() -> None:
    """As a person would report it."""
    layers = [STATES["over-regularised"](f"a{i}") for i in range(3)]
    layers += [STATES["near collapse"]("b"), STATES["collapsed"]("c"), STATES["with learned structure"]("d")]
    assert verdict(layers) == (
        "verdict: 1 of 6 layers collapsed (c), 3 over-regularised (a0, a1, a2), 1 near collapse (b); "
        "1 with learned structure"
    )


def test_without_a_fault_it_says_so() -> None:
    """With what the layers show."""
    layers = [STATES["like noise"]("a"), STATES["not read"]("b")]
    assert verdict(layers) == "verdict: none of 2 layers is over-regularised or near collapse; 1 not read, 1 like noise"


def test_there_is_no_verdict_on_what_was_not_read() -> None:
    """Not even that nothing is wrong."""
    only = verdict([STATES["like noise"]("a")])
    assert only == "verdict: the only layer is not over-regularised or near collapse; 1 like noise"
    assert verdict([STATES["not read"]("a"), STATES["failed"]("b")]) == "no verdict: none of 2 layers could be read"
    assert verdict([STATES["not read"]("a")]) == "no verdict: the only layer could not be read"


@pytest.mark.parametrize("view", ["difference", "lora-delta"])
def test_a_change_of_low_rank_is_not_near_collapse(view: str) -> None:
    """It has the rank of what was trained."""
    assert "near collapse (" not in verdict([ok(Phase.BULK_DECAY, 8, view=view)("a")])
    assert "near collapse (a)" in verdict([ok(Phase.BULK_DECAY, 8)("a")])


@pytest.mark.parametrize("view", ["difference", "lora-delta", "update"])
def test_a_change_is_not_over_regularised(view: str) -> None:
    """Its alpha says nothing of a weight, and the verdict does not speak of weights."""
    layers = [ok(Phase.HEAVY_TAILED, over_regularized=True, view=view)(name) for name in "ab"]
    assert verdict(layers) == "verdict: no fault in the change of 2 layers; 2 with learned structure"
    weight = ok(Phase.HEAVY_TAILED, over_regularized=True)("c")
    assert verdict([*layers, weight]) == "verdict: 1 of 3 layers over-regularised (c); 2 with learned structure"


@given(st.lists(st.sampled_from(sorted(STATES)), min_size=1))
def test_each_layer_is_counted_once(states: list[str]) -> None:
    """Whatever they are, each in its own state."""
    states.append("like noise")  # something has to be read
    text = verdict([STATES[state](f"x{'y' * number}") for number, state in enumerate(states)])
    for state in set(states):
        assert re.search(rf"\b{states.count(state)} (of \d+ layers? )?{state}\b", text), text
    counts = re.sub(r"\(.*?\)|(none )?of \d+ layers?", "", text)
    assert sum(map(int, re.findall(r"\b\d+\b", counts))) == len(states)
