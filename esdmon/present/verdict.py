"""Summarise the readings of a model in one sentence."""

from collections.abc import Callable, Mapping, Sequence

from esdmon.records import EQUAL, LayerReport
from esdmon.records.text import count, named
from esdmon.spectrum import Phase

NEARLY_FULL = 0.97
"""Share of the full rank below which a layer is near collapse; above it the alert `rank_collapse` ends."""


def verdict(layers: Sequence[LayerReport]) -> str:
    """Return one sentence: the number and names of the layers with each fault, and the phases of the others.

    Each layer counts once, with its gravest fault. A weight is near collapse if it has lost more than 3 % of its rank
    but is not in the phase rank-collapse. Differences and adapters may have any rank and any alpha.
    """
    by_state: dict[str, list[str]] = {state: [] for state in (*_FAULTS, *_STATES)}
    for layer in layers:
        by_state[_state(layer)].append(layer.name)
    if not any(layer.was_read for layer in layers):
        what = "the only layer could not" if len(layers) == 1 else f"none of {len(layers)} layers could"
        return f"no verdict: {what} be read"
    total = count(len(layers), "layer")
    faults = [f"{len(names)} {fault} ({named(names, most=2)})" for fault in _FAULTS if (names := by_state[fault])]
    states = [f"{len(names)} {state}" for state in _STATES if (names := by_state[state])]
    if faults:
        faults[0] = faults[0].replace(" ", f" of {total} ", 1)
    elif any(layer.is_weight for layer in layers):
        which = f"none of {total} is" if len(layers) > 1 else "the only layer is not"
        faults = [f"{which} over-regularised or near collapse"]
    else:
        faults = [f"no fault in the change of {total}"]
    return f"verdict: {'; '.join(', '.join(found) for found in (faults, states) if found)}"


_FAULTS: Mapping[str, Callable[[LayerReport], bool]] = {
    "not finite": lambda layer: layer.status == "nonfinite",
    "all zero": lambda layer: layer.status == "degenerate",
    "failed": lambda layer: layer.status == "failed",
    "collapsed": lambda layer: layer.phase is Phase.RANK_COLLAPSE,
    "over-regularised": lambda layer: layer.over_regularized,
    "near collapse": lambda layer: layer.is_weight and _rank(layer) < NEARLY_FULL * layer.n_eigenvalues,
}
"""Faults in order of gravity, the gravest first."""
_STATES: Mapping[str, Callable[[LayerReport], bool]] = {
    "not read": lambda layer: not layer.was_read,
    "equal to the reference": lambda layer: layer.reason == EQUAL,
    "unclassified": lambda layer: layer.shown_phase is Phase.UNCLASSIFIED,
    "like noise": lambda layer: layer.shown_phase is Phase.RANDOM_LIKE,
    "with learned structure": lambda _: True,
}


def _rank(layer: LayerReport) -> float:
    return layer.measures.get("hard_rank", layer.n_eigenvalues)


def _state(layer: LayerReport) -> str:
    faults = (fault for fault, has in _FAULTS.items() if has(layer))
    states = (state for state, has in _STATES.items() if has(layer))
    return next(faults, None) or next(states)
