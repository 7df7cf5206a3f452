"""The numbers of a report under the tags that charts are drawn by, and not more of them than can be looked at.

Tags are `esdmon_summary/<name>` and `esdmon_<measure>/<layer>`: TensorBoard and Weights & Biases group by what stands
before the slash, so each measure is a group with a chart for each layer. A model of 72 matrices with all measures would
have 1900 charts. So above `Report.max_tags` only the chief measures have series; and where that is still too many,
there is one for each kind of layer, `esdmon_alpha/transformer.h.all.mlp.c_fc`, the median over its layers, and for as
many single layers, evenly spread over the depth, as there is room for. Which those are depends on the model alone, so
that no series has holes. The JSONL has everything.

Tags hold ASCII letters, digits, `_ - . : /` and blanks only, which every tracker takes; MLflow refuses a whole reading
for one `+` or `*` in it.
"""

import logging
import math
import re
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from statistics import median
from typing import final

from esdmon.records import LayerReport, Report
from esdmon.spectrum import Phase

CHIEF = ("alpha", "mp_soft_rank", "n_spikes", "stable_rank", "matrix_entropy", "lambda_max")
"""The measures of which each layer has a series as long as that is possible. Our choice."""

_log = logging.getLogger("esdmon")
_PREFIX = "esdmon"
_EVERYWHERE = re.compile(r"[\w\-.:/ ]*", re.ASCII)
_ELSEWHERE = re.compile(r"[^\w\-./ ]", re.ASCII)
_ESCAPED = re.compile(":[0-9a-f]+:")
_PHASES = {f"layers_{phase.value}": f"layers_{phase.value.replace('+', '-')}" for phase in Phase}


def clean(name: str) -> str:
    """Return a name that every tracker takes; no two names give the same.

    A character that some tracker refuses becomes its code point between colons, `a+b` is `a:2b:b`. Names without such
    characters stay as they are, but for one that looks like the result of that.
    """
    if _EVERYWHERE.fullmatch(name) and not _ESCAPED.search(name):
        return name
    return _ELSEWHERE.sub(lambda found: f":{ord(found[0]):x}:", name)


def tag(quantity: str, layer: str) -> str:
    """Return the tag of a quantity of a layer: `esdmon_<quantity>/<layer>`."""
    return f"{_PREFIX}_{clean(quantity)}/{clean(layer)}"


def summary_tags(summary: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers of a `Report.summary` by tag; `layers_bulk+spikes` is `esdmon_summary/layers_bulk-spikes`."""
    return {f"{_PREFIX}_summary/{_PHASES.get(name) or clean(name)}": value for name, value in summary.items()}


def scalars(report: Report) -> dict[str, float]:
    """Return what is finite of the summary, and of the layers that were read at this step, by tag."""
    numbers = summary_tags(report.summary)
    names = [layer.name for layer in report] + list(report.waiting)
    most = math.inf if report.max_tags is None else report.max_tags
    ok = [layer for layer in report.new if layer.status == "ok"]
    each = len(CHIEF) + 1
    if len(names) * (1 + max((len(layer.measures) for layer in ok), default=0)) <= most:
        chosen, measures = set(names), None
    elif len(names) * each <= most:
        chosen, measures = set(names), CHIEF
    else:
        kinds = _kinds(names)
        chosen, measures = _spread(names, int(most) // each - len(kinds)), CHIEF
        by_name = {layer.name: layer for layer in report}
        for kind, members in list(kinds.items())[: int(most) // each]:
            numbers |= _medians(kind, [by_name[name] for name in members if name in by_name])
    for layer in ok:
        if layer.name in chosen:
            for name in layer.measures if measures is None else measures:
                numbers[tag(name, layer.name)] = layer.measures.get(name, math.nan)
            numbers[tag("phase", layer.name)] = float(layer.phase.code)
    return {tag: float(value) for tag, value in numbers.items() if math.isfinite(value)}


@final
class Namespace:
    """What the tags of one sink begin with: `esdmon`, or `esdmon2` while another open sink writes to the same place.

    Two models of one run have layers of the same names, whose readings would become one series of both in turn. Which
    it is is settled by the first tag, so that a sink that never writes takes no name from others.

    Args:
        place: the run, writer or tracker that is written to.
        called: what the place is called in the log.
    """

    def __init__(self, place: object, called: str) -> None:
        self.place = place
        self.number = 0
        """Which of the sinks of its place it is; 0 before its first tag."""
        self._called = called

    def prefix(self) -> str:
        """Return what tags begin with here."""
        if not self.number:
            taken = {other.number for other in _open if other.place is self.place}
            self.number = next(number for number in count(1) if number not in taken)
            _open.add(self)
            if self.number > 1:
                _log.warning(
                    "esdmon: another monitor writes to %s already: tags of this one begin with %s_. One monitor of an "
                    "nn.ModuleDict of both models has one set of tags.",
                    self._called,
                    self.prefix(),
                )
        return _PREFIX if self.number == 1 else f"{_PREFIX}{self.number}"

    def __call__(self, tag: str) -> str:
        """Return a tag of `esdmon_…` as it is written here."""
        return self.prefix() + tag.removeprefix(_PREFIX)

    def all(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return values by tag, under the tags that are written here."""
        return {self(tag): value for tag, value in values.items()}

    def free(self) -> None:
        """Leave the name to the next sink."""
        _open.discard(self)
        self.number = 0


_open: weakref.WeakSet[Namespace] = weakref.WeakSet()


def _kinds(names: list[str]) -> dict[str, list[str]]:
    """Return names by kind: the name without its place in a stack of layers that are alike, `h.all.mlp`."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"(?<![^./_])\d+(?![^./_])", "*", name), []).append(name)
    readable = Counter(kind.replace("*", "all") for kind in kinds)
    # A layer may be called `all` itself, and must not share its series with a median.
    return {
        kind if readable[kind.replace("*", "all")] > 1 else kind.replace("*", "all"): members
        for kind, members in kinds.items()
    }


def _spread(names: list[str], count: int) -> set[str]:
    """Return so many of them, from the first to the last."""
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
            found[tag(name, kind)] = median(values)
    return found
