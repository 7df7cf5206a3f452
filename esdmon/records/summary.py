"""Compute summary statistics of a model's layers."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median, pstdev

from esdmon.records.layer import LayerReport
from esdmon.spectrum import Phase

SUMMARISED = ("alpha", "mp_soft_rank", "stable_rank", "matrix_entropy")
"""Measures whose median over the layers is in the summary."""

SPREAD = ("alpha", "hill_alpha")
"""Measures whose standard deviation over the layers is in the summary. Source of the second: TempBalance
(https://arxiv.org/abs/2312.00359), which balances it between layers."""


def summarize(
    layers: Sequence[LayerReport], *, step: int, waiting: Sequence[str], firing: Mapping[str, int]
) -> dict[str, float]:
    """Return medians and spreads over the layers, the number in each phase, and the age of the oldest reading.

    Args:
        layers: the latest reading of each matrix that was read so far.
        step: the step to summarize; layers with this `step` count as new.
        waiting: names of matrices that were not read yet.
        firing: number of layers in which each alert rule that has fired in the run fires now.

    Returns:
        Numbers by name. `alpha_median` and `alpha_spread` are over the layers with a meaningful alpha. A median over no
        layers is absent, and a spread over fewer than two layers.
    """
    ok = [layer for layer in layers if layer.status == "ok" and layer.is_followed]
    numbers: dict[str, float] = {}
    for name in SUMMARISED:
        values = _finite_values(name, ok)
        if values:
            numbers[f"{name}_median"] = median(values)
    for name in SPREAD:
        values = _finite_values(name, ok)
        if len(values) > 1:
            numbers[f"{name}_spread"] = pstdev(values)
    counts = Counter(layer.shown_phase for layer in ok)
    numbers |= {f"layers_{phase.value}": float(counts[phase]) for phase in Phase}
    numbers["layers_not_ok"] = float(sum(layer.status != "ok" and layer.is_followed for layer in layers))
    numbers["layers_new"] = float(sum(layer.step == step for layer in layers))
    numbers["layers_extra"] = float(sum(layer.extra and layer.step == step for layer in layers))
    numbers["layers_unchanged"] = float(sum(layer.unchanged for layer in layers))
    numbers["layers_waiting"] = float(len(waiting))
    numbers["alerts_firing"] = float(sum(firing.values()))
    numbers |= {f"alert_{rule}": float(count) for rule, count in firing.items()}
    numbers["age_max"] = float(max((step - layer.step for layer in layers), default=0))
    return numbers


def _finite_values(measure: str, layers: Sequence[LayerReport]) -> list[float]:
    """Return the finite values of a measure, of alpha only the meaningful ones."""
    chosen = [layer for layer in layers if measure != "alpha" or layer.alpha_is_meaningful]
    values = [layer.measures.get(measure, math.nan) for layer in chosen]
    return [value for value in values if math.isfinite(value)]
