"""The numbers of a report under the tags that charts are drawn by, and not more of them than can be looked at.

Tags are `esdmon_summary/<name>` and `esdmon_<measure>/<layer>`: TensorBoard and Weights & Biases group by what stands
before the slash, so each measure is a group with a chart for each layer. A model of 72 matrices with all measures would
have 1900 charts. So above `Report.max_tags` only the chief measures have series; and where that is still too many,
there is one for each kind of layer, `esdmon_alpha/transformer.h.*.mlp.c_fc`, the median over its layers, and for as
many single layers, evenly spread over the depth, as there is room for. Which those are depends on the model alone, so
that no series has holes. The JSONL has everything.
"""

import math
import re
from collections.abc import Callable
from statistics import median

from esdmon.records import LayerReport, Report

CHIEF = ("alpha", "mp_soft_rank", "n_spikes", "stable_rank", "matrix_entropy", "lambda_max")
"""The measures of which each layer has a series as long as that is possible. Our choice."""


def scalars(report: Report) -> dict[str, float]:
    """What is finite of the summary, and of the layers that were read at this step, by tag."""
    numbers = {f"esdmon_summary/{name}": value for name, value in report.summary.items()}
    names = [layer.name for layer in report] + list(report.waiting)
    most = math.inf if report.max_tags is None else report.max_tags
    ok = [layer for layer in report.new if layer.status == "ok"]
    kinds = dict.fromkeys(map(_kind, names))
    each = len(CHIEF) + 1
    if len(names) * (1 + max((len(layer.measures) for layer in ok), default=0)) <= most:
        chosen, measures = set(names), None
    elif len(names) * each <= most:
        chosen, measures = set(names), CHIEF
    else:
        chosen, measures = _spread(names, int(most) // each - len(kinds)), CHIEF
        for kind in list(kinds)[: int(most) // each]:
            numbers |= _medians(kind, [layer for layer in report if _kind(layer.name) == kind])
    for layer in ok:
        if layer.name in chosen:
            for name in layer.measures if measures is None else measures:
                numbers[f"esdmon_{name}/{layer.name}"] = layer.measures.get(name, math.nan)
            numbers[f"esdmon_phase/{layer.name}"] = float(layer.phase.code)
    return {tag: float(value) for tag, value in numbers.items() if math.isfinite(value)}


def _kind(name: str) -> str:
    """A layer's name without its place in a stack of layers that are alike."""
    return re.sub(r"(?<![^./_])\d+(?![^./_])", "*", name)


def _spread(names: list[str], count: int) -> set[str]:
    """So many, from the first to the last."""
    if count <= 0:
        return set()
    if count == 1:
        return {names[0]}
    return {names[round(k * (len(names) - 1) / (count - 1))] for k in range(count)}


def _medians(kind: str, layers: list[LayerReport]) -> dict[str, float]:
    ok = [layer for layer in layers if layer.status == "ok"]
    quantities: dict[str, Callable[[LayerReport], float]] = {
        name: (lambda layer, name=name: layer.measures.get(name, math.nan))  # type: ignore[misc]
        for name in CHIEF
    }
    quantities["phase"] = lambda layer: float(layer.phase.code)
    found = {}
    for name, quantity in quantities.items():
        values = [value for layer in ok if math.isfinite(value := quantity(layer))]
        if values:
            found[f"esdmon_{name}/{kind}"] = median(values)
    return found
