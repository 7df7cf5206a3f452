import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esdmon.schedule.first_rounds import first_rounds
from esdmon.schedule.priority import REFRESH, TOLERANCE, ReadPriority

EVERY = 10


class Model:
    """Matrices that move at rates of their own, and what reading them costs."""

    def __init__(self, costs: list[float], rates: list[float], *, limited: bool = True) -> None:
        self.costs = {f"w{k}": cost for k, cost in enumerate(costs)}
        self.rates = dict(zip(self.costs, rates, strict=True))
        self.turns = ReadPriority(self.costs, limited=limited)
        self.read_at = dict.fromkeys(self.costs, 0)

    def due(self, step: int, credit: float) -> list[str]:
        for name in self.turns.to_measure():
            drift = self.rates[name] * (step - self.read_at[name])
            self.turns.drifted(name, step, drift, trainable=self.rates[name] > 0)
        chosen = self.turns.choose(step, credit)
        for name in chosen:
            self.turns.begun(name, step)
            self.turns.took(name, self.costs[name])
            self.read_at[name] = step
        self.turns.pass_by()
        return chosen

    def train(self, dues: int, earned: float) -> list[list[str]]:
        """A run in which each due step earns the same, saved and owed as the budget does."""
        credit, all_chosen = 0.0, []
        most = 2 * sum(self.costs.values())
        for k in range(1, dues + 1):
            credit = min(most, max(-most, credit + earned))
            chosen = self.due(k * EVERY, credit)
            credit -= sum(self.costs[name] for name in chosen)
            all_chosen.append(chosen)
        return all_chosen


costs = st.floats(min_value=0.01, max_value=100)
moving = st.floats(min_value=2 * TOLERANCE / EVERY, max_value=0.1)


@given(st.lists(st.tuples(costs, moving), min_size=1, max_size=8), st.floats(min_value=0, max_value=10))
@settings(max_examples=60)
def test_at_least_one_at_each_due_step_and_none_starves(matrices: list[tuple[float, float]], earned: float) -> None:
    """Whatever they cost and however fast they move, on any credit."""
    model = Model(*map(list, zip(*matrices, strict=True)))
    chosen = model.train(2000, earned)
    assert all(chosen)
    assert set(Counter(name for names in chosen[1000:] for name in names)) == set(model.costs)


@given(st.lists(st.tuples(st.floats(min_value=0.01, max_value=1), moving), min_size=2, max_size=8))
@settings(max_examples=60)
def test_the_credit_is_kept(matrices: list[tuple[float, float]]) -> None:
    """Where each can be paid for by what a due step earns, the sum is; and the credit is used, not left."""
    model = Model(*map(list, zip(*matrices, strict=True)))
    earned = 1.5 * max(model.costs.values())
    chosen = model.train(500, earned)
    spent = sum(model.costs[name] for names in chosen for name in names)
    assert spent <= 500 * earned + 1e-6
    assert spent >= min(0.5 * 500 * earned, 0.9 * 500 * sum(model.costs.values()))


def test_a_model_that_is_cheap_is_read_whole_each_time() -> None:
    """A small one."""
    model = Model([0.1, 0.2, 0.3], [0.01, 0.001, 0.1])
    assert {frozenset(names) for names in model.train(20, earned=1.0)} == {frozenset(model.costs)}


def test_what_moves_fast_is_read_more_often_and_what_costs_more_less() -> None:
    """T ∝ √(c/d): four times the drift, or a quarter of the cost, twice as often."""
    model = Model([1, 1, 4], [0.04, 0.01, 0.01])
    read = Counter(name for names in model.train(6000, earned=0.8)[1000:] for name in names)
    assert read["w0"] / read["w1"] == pytest.approx(2, rel=0.1)
    assert read["w1"] / read["w2"] == pytest.approx(2, rel=0.1)


def test_unread_ones_come_first_and_the_cheapest_kind_of_them() -> None:
    """So that there is something to see soon, and its cost is known."""
    priority = ReadPriority({"q": 3.0, "up": 1.0, "down": 2.0})
    chosen = []
    for step in range(3):
        (name,) = priority.choose(step, 0.0)
        priority.begun(name, step)
        priority.took(name, priority.expected(name))
        chosen.append(name)
    assert chosen == ["up", "down", "q"]


@given(st.integers(0, 200))
def test_first_readings_are_spread_over_the_depth(count: int) -> None:
    """Each is in one round; the ends are early, and after k rounds no gap is wider than the widest half of before."""
    rounds = first_rounds(f"h.{number}.fc" for number in range(count))
    order = sorted(range(count), key=lambda number: rounds[f"h.{number}.fc"])
    assert sorted(rounds.values()) == list(range(count))
    if count > 2:
        assert order[:3] == [(count - 1) // 2, 0, count - 1]
        read = sorted(order[: 1 + 2 ** (count.bit_length() // 2)])
        assert max(b - a for a, b in pairwise(read)) <= 2 * count / (len(read) - 1) + 1


def test_the_first_readings_cover_every_kind() -> None:
    """One of each, though some cost a hundred times as much as others; then the first and the last."""
    costs = {"q": 1.0, "up": 3.0, "down": 100.0}
    names = {f"h.{depth}.{kind}": cost for depth in range(9) for kind, cost in costs.items()}
    priority = ReadPriority(names)
    chosen = []
    for step in range(9):
        (name,) = priority.choose(step, 0.0)
        priority.begun(name, step)
        priority.took(name, names[name])
        chosen.append(name)
    assert chosen == [f"h.{depth}.{kind}" for depth in (4, 0, 8) for kind in costs]


def test_unchanged_ones_are_left_out_and_say_so() -> None:
    """Up to the tolerance since their last reading, however long that takes."""
    model = Model([1, 1], [0.01, TOLERANCE / (5 * EVERY)])
    chosen = model.train(9, earned=10.0)
    assert [len(names) for names in chosen] == [2, 1, 1, 1, 1, 1, 2, 1, 1]
    assert model.turns.drift("w1") <= TOLERANCE
    assert chosen[6] == ["w0", "w1"]


def test_an_unchanged_one_is_read_again_after_a_while_but_never_on_debt() -> None:
    """A sample may have missed what changed."""
    model = Model([1, 1], [0.01, 0.0])
    rich, poor = model.train(3 * REFRESH, earned=10.0), Model([1, 1], [0.01, 0.0]).train(3 * REFRESH, earned=0.5)
    assert [k for k, names in enumerate(rich) if "w1" in names] == [0, REFRESH, 2 * REFRESH]
    assert Counter(name for names in poor for name in names)["w1"] == 1


def test_if_nothing_has_changed_nothing_is_forced() -> None:
    """A due step without a reading."""
    model = Model([1, 1], [0.0, 0.0])
    assert model.train(4, earned=0.0)[2:] == [[], []]


def test_without_a_limit_all_are_read_but_the_frozen() -> None:
    """Those that train are read whether or not their sample has moved."""
    model = Model([1, 1, 1], [0.01, TOLERANCE / 1e6, 0.0], limited=False)
    assert [sorted(names) for names in model.train(3, earned=math.inf)] == [["w0", "w1", "w2"]] + 2 * [["w0", "w1"]]


@pytest.mark.parametrize("drift", [math.nan, math.inf, 1e9])
def test_a_matrix_that_is_not_finite_does_not_take_all_turns(drift: float) -> None:
    """Its drift counts as that of one that moved as a whole."""
    turns = ReadPriority({"bad": 1.0, "good": 1.0})
    read = Counter[str]()
    at = {"bad": 0, "good": 0}
    for step in range(1, 400):
        turns.drifted("bad", step, drift, trainable=True)
        turns.drifted("good", step, 0.01 * (step - at["good"]), trainable=True)
        for name in turns.choose(step, 0.0):
            turns.begun(name, step)
            at[name] = step
            read[name] += 1
    assert min(read.values()) > 20


def test_a_lost_reading_is_made_up_for() -> None:
    """It counts as changed."""
    turns = ReadPriority({"a": 1.0, "b": 1.0})
    for name in ("a", "b"):
        turns.begun(name, 1)
    assert turns.choose(2, 10.0) == []
    turns.lost("b")
    assert turns.choose(2, 10.0) == ["b"]


def test_what_is_known_of_a_matrix_outlives_a_change_of_the_model() -> None:
    """And what is gone is forgotten, without a word."""
    turns = ReadPriority({"a": 1.0, "b": 1.0})
    for name in ("a", "b"):
        turns.begun(name, 1)
        turns.took(name, 3.0)
    turns.replace({"b": 1.0, "c": 2.0})
    turns.took("a", 1.0)
    turns.lost("a")
    assert turns.names == ("b", "c")
    assert [turns.expected(name) for name in ("a", "b", "c")] == [0.0, 3.0, 6.0]
    assert turns.choose(2, 10.0) == ["c"]


def test_matrices_are_screened_that_wait_for_their_reading() -> None:
    """Never read ones first, then those not known for longest; none that was read a short while ago or stands still."""
    turns = ReadPriority({f"w{k}": 1.0 for k in range(6)})
    for step, name in ((10, "w0"), (20, "w1"), (30, "w2"), (40, "w3")):
        turns.begun(name, step)
        turns.took(name, 1.0)
        turns.pass_by()
    turns.begun("w4", 50)
    for name in ("w0", "w1", "w2", "w3"):
        turns.drifted(name, 60, 0.0 if name == "w1" else 0.1, trainable=True)
    assert turns.to_screen() == ["w5", "w0"]
    turns.pass_by()
    assert turns.to_screen(["w5"]) == ["w0", "w2"]
    turns.screened("w0", 60)
    assert turns.to_screen() == ["w5", "w2", "w0"]
    assert turns.to_screen(in_part=True) == ["w5", "w1", "w2", "w0"]
    assert ReadPriority({"w": 1.0}, limited=False).to_screen() == []


@pytest.mark.parametrize("change", [0.5, math.inf])
def test_a_change_of_the_largest_eigenvalue_counts_as_drift(change: float) -> None:
    """Until the next reading is begun, and none that was found out about an earlier weight."""
    turns = ReadPriority({"a": 1.0, "b": 1.0})
    for name in ("a", "b"):
        turns.begun(name, 10)
        turns.took(name, 1.0)
        turns.drifted(name, 20, 0.1, trainable=True)
    turns.screened("b", 10, change)
    assert turns.choose(20, 1.0) == ["a"]
    turns.screened("b", 20, change)
    assert turns.choose(20, 1.0) == ["b"]
    assert turns.choose(30, 1.0, ahead=True) == ["b"]
    turns.drifted("b", 20, 0.0, trainable=True)
    assert turns.choose(20, 1.0) == ["b"]
    turns.screened("b", 30)  # as where an accelerator computes it while the next due step is planned
    assert turns.choose(30, 1.0) == ["b"]
    turns.begun("b", 30)
    assert turns.choose(40, 1.0) == ["a"]


def test_a_change_since_an_older_reading_is_left_out() -> None:
    """Where the next one is under way while a matrix is screened again."""
    turns = ReadPriority({"a": 1.0, "b": 1.0})
    for name, step in (("a", 10), ("b", 10), ("b", 15)):
        turns.begun(name, step)
        turns.took(name, 1.0)
        turns.drifted(name, 20, 0.1, trainable=True)
    for since, first in ((10, "a"), (15, "b")):
        turns.screened("b", 20, 0.5, since=since)
        assert turns.choose(20, 1.0) == [first]


def test_what_an_alert_waits_for_comes_first() -> None:
    """Without credit for a second one too; unless it is known not to have moved since it was read."""
    model = Model([1.0, 1.0, 1.0], [0.01, 0.01, 0.0])
    model.due(10, 3.0)
    for name, rate in model.rates.items():
        model.turns.drifted(name, 20, 10 * rate, trainable=True)
    assert model.turns.choose(20, 0.0) == ["w0"]
    assert model.turns.choose(20, 0.0, first=["w1", "gone"]) == ["w1"]
    assert model.turns.choose(20, 2.0, first=["w1"]) == ["w1", "w0"]
    assert model.turns.choose(20, 0.0, first=["w2"]) == ["w0"]
    model.turns.begun("w2", 20)
    assert model.turns.choose(30, 0.0, first=["w2"]) == ["w2"]


class _Scanned(tuple[str, ...]):
    """Names that take a comparison with each to find one."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        raise AssertionError(f"{name} was searched in {len(self)} names")


def test_what_comes_first_is_not_searched_for_each_matrix() -> None:
    """If all of 5000 layers have an unconfirmed finding, that is a tenth of a second in the training's hook."""
    turns = ReadPriority({"a": 1.0, "b": 1.0, "c": 1.0})
    assert turns.choose(10, 2.0, first=_Scanned(("c",))) == ["c", "a"]
    assert ("b" in turns, "d" in turns) == (True, False)
