from hypothesis import given
from hypothesis import strategies as st

from esdmon.schedule.loads import share_out

costs = st.floats(min_value=0.01, max_value=100)


@given(st.dictionaries(st.text(max_size=3), costs, max_size=20), st.integers(min_value=1, max_value=5))
def test_shares_are_even(given_costs: dict[str, float], ranks: int) -> None:
    """Each matrix once; no rank has more than the others by more than one matrix."""
    shares = share_out(given_costs, range(ranks))
    assert sorted(name for names in shares.values() for name in names) == sorted(given_costs)
    loads = [sum(given_costs[name] for name in names) for names in shares.values()]
    assert max(loads) - min(loads) <= max(given_costs.values(), default=0) + 1e-9
