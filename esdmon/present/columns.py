"""Choose the columns of a table of layers by name: keys of a layer's record, and combinations of several keys."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from esdmon.errors import InputError, nearest
from esdmon.records import LayerReport, show
from esdmon.records.layer import RECORD_KEYS
from esdmon.records.table import natural_key
from esdmon.records.text import cell_of_alpha

SortKey = tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table of layers."""

    name: str
    """The name of the column on the command line."""
    title: str
    cell: Callable[[LayerReport], str]
    """Returns the text for a layer; a dash for a measure that is undefined."""
    key: Callable[[LayerReport], SortKey | None]
    """Returns the sort key of a layer; None for a layer without a value, which comes last."""
    brief: Callable[[LayerReport], str] | None = None
    """Returns a shorter text for a cell that shows several readings; None uses `cell`."""
    left: bool = False
    """True if the cells are aligned to the left."""
    every_status: bool = False
    """True if the column also has values for layers that were not read."""

    def show(self, layer: LayerReport, *, briefly: bool = False) -> str:
        """Return the cell of a layer, which is empty if it was not read."""
        if layer.status != "ok" and not self.every_status:
            return ""
        return (self.brief or self.cell)(layer) if briefly else self.cell(layer)


def _number(layer: LayerReport, name: str) -> SortKey | None:
    value = layer.measures.get(name, math.nan)
    return (value,) if math.isfinite(value) else None


def _moved(layer: LayerReport) -> str:
    if math.isinf(layer.update_ratio):  # the weight was zero before
        return "∞"
    return "–" if math.isnan(layer.update_ratio) else f"{layer.update_ratio:.2%}"


def _measure(name: str, title: str, form: str = ".4g") -> Column:
    return Column(name, title, partial(show, measure=name, form=form), partial(_number, name=name))


def _attribute(name: str) -> Column:
    """Return the column of a key of `to_record`."""

    def value(layer: LayerReport) -> object:
        return layer.to_record().get(name)

    def cell(layer: LayerReport) -> str:
        match value(layer):
            case None | "" | []:
                return "–"
            case float(number):
                return f"{number:.4g}"
            case list(values):
                return " ".join(map(str, values))
            case other:
                return str(other)

    def key(layer: LayerReport) -> SortKey | None:
        match value(layer):
            case None:
                return None
            case int(number) | float(number):
                return (float(number),)
            case other:
                return natural_key(str(other))

    return Column(name, name.replace("_", " "), cell, key, every_status=True)


def _alpha_briefly(layer: LayerReport) -> str:
    return show(layer, "alpha", ".2f") if layer.alpha_is_meaningful else "–"


def _rank_of(layer: LayerReport) -> str:
    return f"{show(layer, 'hard_rank', '.0f')}/{layer.n_eigenvalues}"


_OWN = (
    Column(
        "layer", "layer", lambda layer: layer.name, lambda layer: natural_key(layer.name), left=True, every_status=True
    ),
    Column("type", "type", lambda layer: layer.kind, lambda layer: (layer.kind,), left=True, every_status=True),
    Column(
        "shape", "N × M", lambda layer: layer.shape_text, lambda layer: (float(layer.n_parameters),), every_status=True
    ),
    Column(
        "phase",
        "phase",
        lambda layer: layer.state,
        lambda layer: (float(layer.phase_code),) if layer.status == "ok" else None,
        left=True,
        every_status=True,
    ),
    Column("alpha", "alpha", cell_of_alpha, partial(_number, name="alpha"), brief=_alpha_briefly),
    _measure("mp_soft_rank", "soft rank", ".2f"),
    _measure("stable_rank", "stable rank", ".1f"),
    Column("hard_rank", "hard rank", _rank_of, partial(_number, name="hard_rank")),
    _measure("n_spikes", "spikes", ".0f"),
    Column(
        "moved",
        "moved",
        _moved,
        lambda layer: None if math.isnan(layer.update_ratio) else (layer.update_ratio,),
    ),
)
_BY_NAME: Mapping[str, Column] = {column.name: column for column in _OWN}
TABLE = ("layer", "type", "shape", "phase", "alpha", "mp_soft_rank", "stable_rank", "hard_rank", "n_spikes")
"""Default columns of the table of one checkpoint."""
COMPARISON = ("layer", "moved", "alpha", "mp_soft_rank", "phase")
"""Default columns of a comparison."""
DROPPED_FIRST = ("hard_rank", "stable_rank", "type")
"""Default columns that are dropped on a narrow terminal, in this order."""


def choose_columns(option: str, names: Iterable[str], measures: Iterable[str]) -> tuple[Column, ...]:
    """Return the columns of these names.

    Args:
        option: name of the option with these names, for the error message.
        names: names of columns: those of `TABLE` and `COMPARISON`, keys of a layer's record, measures,
            `<measure>_null`.
        measures: names of all known measures.

    Raises:
        InputError: for an unknown name, with the nearest known ones.
    """
    known = dict.fromkeys((*_BY_NAME, *RECORD_KEYS, *measures, *(f"{name}_null" for name in measures)))
    for name in names:
        if name not in known:
            hint = nearest(name, known) or f" The usual ones are: {', '.join(_BY_NAME)}."
            raise InputError(f"unknown column {name!r} in {option}.{hint}")
    return tuple(_BY_NAME.get(name) or _attribute(name) for name in names)


def measures_in(columns: Sequence[Column], known: Iterable[str]) -> list[str]:
    """Return the measures that these columns show."""
    names = {column.name.removesuffix("_null") for column in columns}
    return [measure for measure in known if measure in names]


def sort_layers(layers: Sequence[LayerReport], column: Column, *, descending: bool = False) -> list[LayerReport]:
    """Return the layers sorted by a column, layers without a value last; the sort is stable."""
    keyed = [(key, layer) for layer in layers if (key := column.key(layer)) is not None]
    rest = [layer for layer in layers if column.key(layer) is None]
    return [layer for _, layer in sorted(keyed, key=lambda pair: pair[0], reverse=descending)] + rest
