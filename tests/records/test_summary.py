"""Statistics over the layers of a model."""

import numpy as np
import pytest

from esdmon.records import LayerReport
from esdmon.records.summary import summarize


def layer(name: str, alpha: float, *, is_meaningful: bool = True) -> LayerReport:
    measures = {"alpha": alpha, "hill_alpha": alpha + 1}
    return LayerReport(name, "ok", 1, measures=measures, alpha_is_meaningful=is_meaningful)


def test_the_spread_over_layers_is_a_standard_deviation() -> None:
    """Of the meaningful alphas, and of all Hill alphas; of fewer than two there is none."""
    layers = [layer("a", 2.0), layer("b", 3.5), layer("c", 9.0, is_meaningful=False)]
    numbers = summarize(layers, step=1, waiting=(), firing={})
    assert numbers["alpha_spread"] == pytest.approx(np.std([2.0, 3.5]))
    assert numbers["hill_alpha_spread"] == pytest.approx(np.std([3.0, 4.5, 10.0]))
    alone = summarize(layers[1:], step=1, waiting=(), firing={})
    assert "alpha_spread" not in alone
    assert alone["hill_alpha_spread"] == pytest.approx(np.std([4.5, 10.0]))
