"""How soon a large model is read: schedule, budget, control of threads and sharing among ranks, simulated."""

import pytest

from tests.benchmarks.sweep_alone import MODELS, simulate_beside
from tests.benchmarks.sweep_ranks import simulate_ranks

BUDGET = 0.01


@pytest.mark.parametrize("idle", [2, 12])
def test_a_sharded_model_is_read_within_an_hour(idle: int) -> None:
    """On two idle cores for each rank; a thread that is charged in full takes hours."""
    found = simulate_ranks(MODELS["7B"], idle=idle, every=200, step=1.0, share=BUDGET)
    assert found.kinds < 600
    assert found.all < 3600
    assert found.norms < 900
    assert found.overhead < BUDGET


def test_without_idle_cores_a_sharded_model_keeps_to_the_budget() -> None:
    """One thread on each rank, charged in full."""
    found = simulate_ranks(MODELS["7B"], idle=0, every=200, step=1.0, share=BUDGET)
    assert 7200 < found.all < 6 * 3600
    assert found.norms < 900
    assert found.oldest < 900


def test_a_model_on_one_device_is_read_within_an_hour() -> None:
    model = MODELS["7B"]
    sizes = {name: 2 * rows * columns for name, (rows, columns) in model.shapes().items()}
    found = simulate_beside(model.costs(), sizes, {}, idle=2, every=200, step=1.0, share=BUDGET)
    assert found.kinds < 600
    assert found.all < 3600
    assert found.overhead < BUDGET
