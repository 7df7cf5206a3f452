"""Select the numbers of a report by tag, and limit their number for trackers that draw a chart for each tag.

Tags are `esdmon_summary/<name>` and `esdmon_<measure>/<layer>`: TensorBoard and Weights & Biases group by the part
before the slash, so each measure is a group with a chart for each layer. A model of 72 matrices with all measures would
have 1900 charts. If that exceeds `Report.max_tags`, only the chief measures have series. If these are still too many,
each kind of layer has one series, `esdmon_alpha/transformer.h.all.mlp.c_fc`, the median over its layers, and as many
single layers as the limit allows, evenly spaced over the depth, have their own series. The choice depends on the model
alone, so that no series has gaps. The JSONL has everything.

TensorBoard gets fewer series (`as_charts`): for five layers with the default measures at most 45 instead of 200.

Tags contain only ASCII letters, digits, `_ - . : /` and blanks, have at most 250 characters, and no two tags are equal
as file paths. Every tracker accepts them; MLflow rejects a whole report for one `+`, `*` or `//` in it.
"""

import hashlib
import logging
import math
import re
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from statistics import median
from typing import final

from esdmon.records import LayerReport, Report, Screened
from esdmon.spectrum import Phase
from esdmon.spectrum.measures import BUILT_IN_MEASURES

CHIEF = ("alpha", "mp_soft_rank", "n_spikes", "stable_rank", "matrix_entropy", "lambda_max")
"""Measures that keep a series for each layer as long as possible. Our choice."""

_DEFAULT = [measure for measure in BUILT_IN_MEASURES if not measure.needs]
_SECONDARY = {measure.name for measure in _DEFAULT} - {*CHIEF}
_OF_ALL = {measure.name for measure in _DEFAULT if measure.applies is None and not measure.between_readings} - {*CHIEF}
_log = logging.getLogger("esdmon")
_PREFIX = "esdmon"
_PORTABLE = re.compile(r"[\w\-.:/ ]*", re.ASCII)
_NOT_PORTABLE = re.compile(r"[^\w\-./ ]", re.ASCII)
_ESCAPED = re.compile(":[0-9a-f]+:")
_LONGEST = 200  # characters of a name: MLflow takes tags of 250, SwanLab of 255
_PHASE_NAMES = {f"layers_{phase.value}": f"layers_{phase.value.replace('+', '-')}" for phase in Phase}


def portable(name: str) -> str:
    """Return a name that every tracker accepts, different for each name.

    A character that some tracker rejects is replaced by its code point between colons: `a+b` becomes `a:2b:b`. In a
    name that a file system would read as the path of another one, such as `a//b`, dots and slashes are replaced too.
    The end of a very long name is replaced by a hash. Other names are returned unchanged, unless they look like a
    replacement.
    """
    if not _PORTABLE.fullmatch(name) or _ESCAPED.search(name):
        name = _NOT_PORTABLE.sub(_escaped, name)
    if name and _is_path_to_another(name):
        name = re.sub(r"[./ ]", _escaped, name)
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 17]}:{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return name


def _escaped(found: re.Match[str]) -> str:
    return f":{ord(found[0]):x}:"


def _is_path_to_another(name: str) -> bool:
    return name[-1] in ". " or any(part in ("", ".", "..") for part in name.split("/"))


def tag(quantity: str, layer: str) -> str:
    """Return the tag of a quantity of a layer: `esdmon_<quantity>/<layer>`."""
    return f"{_PREFIX}_{portable(quantity)}/{portable(layer)}"


def summary_tags(summary: Mapping[str, float]) -> dict[str, float]:
    """Return a `Report.summary` by tag; `layers_bulk+spikes` becomes `esdmon_summary/layers_bulk-spikes`."""
    return {f"{_PREFIX}_summary/{_PHASE_NAMES.get(name) or portable(name)}": value for name, value in summary.items()}


def scalars(report: Report, *, as_charts: bool = False) -> dict[str, float]:
    """Return the finite numbers of the summary, and of the layers that were read or screened at this step, by tag.

    Screened norms are in the same series as those of readings; λmax only if its residual is at most a hundredth.

    Args:
        report: the report.
        as_charts: for a tracker that draws a chart for each tag: return only the chief ones of the default measures,
            unless `max_tags` is None; and return an alpha that is not meaningful as `alpha_noise`, so that it is not in
            the chart of meaningful ones.
    """
    numbers = summary_tags(report.summary)
    ok = [layer for layer in report.new if layer.status == "ok"]
    norms = {each.name: each for each in report.screened}
    read = ok or [layer for layer in report if layer.status == "ok"]
    choice = _choose_series(report, max((layer.measures for layer in read), key=len, default={}), as_charts=as_charts)
    by_name = {layer.name: _with_norms(layer, norms.get(layer.name)) for layer in report}
    for kind, members in choice.kinds.items():
        numbers |= _medians(kind, [by_name[name] for name in members if name in by_name], as_charts=as_charts)
    for layer in ok:
        if layer.name in choice.layers:
            measures = layer.measures if choice.measures is None else choice.measures
            numbers |= {
                tag(quantity, layer.name): value
                for quantity, value in _quantities(layer, measures, as_charts=as_charts)
            }
    for name, screened in norms.items():
        if screened.is_new and name in choice.layers:
            kept = screened.measures.keys() & (by_name[name].measures if name in by_name else choice.measures or ())
            chosen = kept if choice.measures is None else kept.intersection(choice.measures)
            numbers |= {tag(measure, name): screened.measures[measure] for measure in sorted(chosen)}
    return {tag: float(value) for tag, value in numbers.items() if math.isfinite(value)}


def _with_norms(layer: LayerReport, screened: Screened | None) -> LayerReport:
    """Return a layer with those of its norms replaced that were screened after its reading."""
    if screened is None:
        return layer
    norms = {measure: value for measure, value in screened.measures.items() if measure in layer.measures}
    return replace(layer, measures={**layer.measures, **norms})


@final
class Namespace:
    """The first part of the tags of one sink: `esdmon`, or `esdmon2` while another open sink writes to the same place.

    Two models of one run may have layers of the same names, whose readings would be mixed in one series. The number is
    assigned at the first tag, so that a sink that never writes takes none.

    Args:
        place: the run, writer or tracker that the sink writes to.
        description: name of the place in log messages.
    """

    def __init__(self, place: object, description: str) -> None:
        self.place = place
        self.number = 0
        """Number of the sink among those of its place, from 1; 0 before its first tag."""
        self._description = description

    def __call__(self, tag: str) -> str:
        """Return a tag `esdmon_…` with the namespace of this sink."""
        return self._prefix() + tag.removeprefix(_PREFIX)

    def rename(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return values by tag, with the namespace of this sink in the tags."""
        return {self(tag): value for tag, value in values.items()}

    def release(self) -> None:
        """Make the number available to the next sink."""
        _open.discard(self)
        self.number = 0

    def _prefix(self) -> str:
        if not self.number:
            self._take_number()
        return _PREFIX if self.number == 1 else f"{_PREFIX}{self.number}"

    def _take_number(self) -> None:
        taken = {other.number for other in _open if other.place is self.place}
        self.number = next(number for number in count(1) if number not in taken)
        _open.add(self)
        if self.number > 1:
            _log.warning(
                "esdmon: another monitor writes to %s already: tags of this one begin with %s_. To share one set of "
                "tags, watch an nn.ModuleDict of both models with one monitor.",
                self._description,
                self._prefix(),
            )


_open: weakref.WeakSet[Namespace] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class _Series:
    """The series of layers that a report may have."""

    layers: set[str]
    """Names of the layers that have their own series."""
    measures: Sequence[str] | None = None
    """Measures that have series; None for all."""
    kinds: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Kinds of layers that have a series of medians, each with the names of its layers."""


def _choose_series(report: Report, measures: Collection[str], *, as_charts: bool) -> _Series:
    """Choose as many series as `Report.max_tags` allows; each layer or kind also has `update_ratio`, `phase`."""
    names = [layer.name for layer in report] + list(report.waiting)
    limit, more = report.max_tags, 3 if as_charts else 2  # alpha may have two series
    if limit is None:
        return _Series(set(names))
    if as_charts and set(measures) >= _OF_ALL:  # else the user has chosen measures by name
        measures = [measure for measure in measures if measure not in _SECONDARY]
    if len(names) * (len(measures) + more) <= limit:
        return _Series(set(names), tuple(measures))
    room = limit // (len(CHIEF) + more)
    if len(names) <= room:
        return _Series(set(names), CHIEF)
    by_kind = kinds(names)
    return _Series(_evenly_spaced(names, room - len(by_kind)), CHIEF, dict(islice(by_kind.items(), room)))


def kind_of(layer: str) -> str:
    """Return the name of a layer with `*` for its place in a stack of similar ones: `h.3.mlp` is of kind `h.*.mlp`."""
    return re.sub(r"(?<![^./_])\d+(?![^./_])", "*", layer)


def kinds(names: Sequence[str]) -> dict[str, list[str]]:
    """Group names by kind: the name without the layer's place in a stack of similar layers, such as `h.all.mlp`."""
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(kind_of(name), []).append(name)
    readable = {kind: kind.replace("*", "all") for kind in members}
    uses = Counter(readable.values())
    # A layer may be called `all` itself, and must not share its series with a median.
    return {kind if uses[readable[kind]] > 1 else readable[kind]: found for kind, found in members.items()}


def _evenly_spaced(names: list[str], count: int) -> set[str]:
    """Return `count` of the names, evenly spaced from the first to the last."""
    if count <= 0:
        return set()
    if count == 1:
        return {names[0]}
    return {names[round(k * (len(names) - 1) / (count - 1))] for k in range(count)}


def _quantities(layer: LayerReport, measures: Iterable[str], *, as_charts: bool) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each quantity with a series: the update ratio, measures, and the phase."""
    yield "update_ratio", layer.update_ratio
    for measure in measures:
        is_noise = as_charts and measure == "alpha" and not layer.alpha_is_meaningful
        yield "alpha_noise" if is_noise else measure, layer.measures.get(measure, math.nan)
    yield "phase", float(layer.shown_phase.code)


def _medians(kind: str, layers: list[LayerReport], *, as_charts: bool) -> dict[str, float]:
    """Return the medians of the chief measures and of the phase, by tag; none if no value is finite."""
    values: dict[str, list[float]] = {}
    for layer in layers:
        if layer.status == "ok":
            for quantity, value in _quantities(layer, CHIEF, as_charts=as_charts):
                if math.isfinite(value):
                    values.setdefault(quantity, []).append(value)
    return {tag(quantity, kind): median(finite) for quantity, finite in values.items()}
