"""Records as plain data that any checkpoint can hold, and back: numbers, texts, lists and dictionaries."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Protocol

from esdmon.records.alert import Alert
from esdmon.records.layer import Esd, LayerReport
from esdmon.spectrum import Phase

Plain = dict[str, Any]
_FIELDS = {field.name for field in fields(LayerReport)}
_PHASES = {phase.value for phase in Phase}
_DERIVED = {"schema", "kind", "Q", "n_eigenvalues", "age", "phase_code"}


class Stateful(Protocol):
    """What is saved with a run and goes on from there."""

    def state_dict(self) -> Plain:
        """Return what is to be kept."""

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse what `state_dict` returned, and return a function that goes on from it.

        Nothing changes before that function is called, so that a damaged state leaves all parts of a monitor as they
        were.
        """


def to_plain(record: LayerReport | Alert | Esd) -> Plain:
    """Field by field; NaN stays NaN."""
    return {field.name: _plain(getattr(record, field.name)) for field in fields(record)}


def layer_from_plain(plain: Mapping[str, Any]) -> LayerReport:
    """The layer that `to_plain` was given."""
    esd = plain["esd"] and Esd(**plain["esd"] | {"counts": tuple(plain["esd"]["counts"])})
    changed = {"phase": Phase(plain["phase"]), "aliases": tuple(plain["aliases"]), "esd": esd}
    return LayerReport(**dict(plain) | changed)


def alert_from_plain(plain: Mapping[str, Any]) -> Alert:
    """The alert that `to_plain` was given."""
    return Alert(**dict(plain) | {"layers": tuple(plain["layers"])})


def layer_from_record(record: Mapping[str, Any]) -> LayerReport:
    """Return the layer of which `LayerReport.to_record` made this; of its spectrum nothing is left.

    What a newer version has added is left out, unless it is a number.
    """
    known = {key: value for key, value in record.items() if key in _FIELDS}
    numbers = {
        key: math.nan if value is None else float(value)
        for key, value in record.items()
        if key not in _FIELDS | _DERIVED and (value is None or isinstance(value, int | float))
    }
    phase, ratio = record.get("phase"), record.get("update_ratio")
    return LayerReport(
        **known
        | {
            "phase": Phase(phase) if phase in _PHASES else Phase.UNCLASSIFIED,
            "aliases": tuple(record.get("aliases") or ()),
            "update_ratio": math.nan if ratio is None else ratio,
            "measures": {key: value for key, value in numbers.items() if not key.endswith("_null")},
            "nulls": {key.removesuffix("_null"): value for key, value in numbers.items() if key.endswith("_null")},
        }
    )


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case Esd():
            return to_plain(value)
        case tuple():
            return list(value)
        case Mapping():
            return dict(value)
    return value
