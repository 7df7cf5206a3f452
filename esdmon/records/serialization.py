"""Convert records to plain data that any checkpoint can hold, and plain data and JSON back to records."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from enum import Enum
from typing import Any, Protocol, get_args

from esdmon.records.alert import Alert, LayerFinding, Severity
from esdmon.records.esd import Esd
from esdmon.records.layer import RECORD_KEYS, LayerReport
from esdmon.records.typed import built
from esdmon.records.values import rounded
from esdmon.spectrum import Phase

Plain = dict[str, Any]
"""Numbers, texts, lists and dictionaries only."""

_unknown: ContextVar[set[str] | None] = ContextVar("unknown", default=None)
_FIELDS = {field.name for field in fields(LayerReport)}
_ALERT_FIELDS = {field.name for field in fields(Alert)}
_ESD_FIELDS = {field.name for field in fields(Esd)}
_STORED = [key for key in RECORD_KEYS if key in _FIELDS]  # the others are computed from these
_NOT_MEASURES = {*RECORD_KEYS, *_FIELDS, "schema", "kind"}
_RATIOS = ("update_ratio", "step_ratio", "step_growth", "start_ratio", "zero_gradient", "learning_rate", "weight_decay")
"""Fields that are NaN if they are undefined, and None in a record."""
_PHASES = {phase.value for phase in Phase}


class Stateful(Protocol):
    """An object whose state is saved with a checkpoint and restored from it."""

    def state_dict(self) -> Plain:
        """Return the state as plain data."""

    def prepare(self, state: Plain) -> Callable[[], None]:
        """Parse what `state_dict` returned, and return a function that restores it.

        Nothing changes before that function is called, so that a damaged state leaves every part of a monitor
        unchanged.
        """


@contextmanager
def collecting_unknown() -> Iterator[set[str]]:
    """Collect the keys that `known` omits, which a newer version has saved."""
    found: set[str] = set()
    token = _unknown.set(found)
    try:
        yield found
    finally:
        _unknown.reset(token)


def known(saved: Mapping[str, Any], keys: Collection[str]) -> Plain:
    """Return the saved values of these keys; other keys are omitted, see `collecting_unknown`."""
    found = _unknown.get()
    if found is not None:
        found.update(str(key) for key in saved if key not in keys)
    return {key: value for key, value in saved.items() if key in keys}


def to_plain(record: LayerReport | Alert | Esd | LayerFinding) -> Plain:
    """Return all fields of a record by name, as plain data; NaN stays NaN."""
    return {field.name: _plain_value(getattr(record, field.name)) for field in fields(record)}


def layer_from_plain(plain: Mapping[str, Any]) -> LayerReport:
    """Return the layer that `to_plain` was called with, without fields that only a newer version has."""
    converted = {
        "phase": Phase(plain["phase"]),
        "settled": plain.get("settled") and Phase(plain["settled"]),
        "aliases": tuple(plain["aliases"]),
        "esd": _esd(plain["esd"]),
        "spectral_shape": tuple(plain.get("spectral_shape", ())),
    }
    return LayerReport(**known(plain, _FIELDS) | converted)


def alert_from_plain(plain: Mapping[str, Any]) -> Alert:
    """Return the alert that `to_plain` was called with, without fields that only a newer version has."""
    check_severity(plain["severity"])
    return Alert(**known(plain, _ALERT_FIELDS) | {"layers": tuple(plain["layers"]), "by_layer": _by_layer(plain)})


def check_severity(severity: object) -> None:
    """Check a severity that was saved.

    Raises:
        ValueError: for one that this version does not have.
    """
    if severity not in get_args(Severity):
        raise ValueError(f"the severity {severity!r} is unknown")


def alert_from_record(record: Mapping[str, Any]) -> Alert:
    """Return the alert that `Alert.to_record` was called on. Its `time` is NaN if it was undefined.

    Raises:
        KeyError, TypeError: if the record lacks a field, or a field has a wrong type or value.
    """
    optional = ("time", "evidence", "by_layer", "after")
    own = {field.name: record[field.name] for field in fields(Alert) if field.name not in optional}
    own |= {key: record.get(key) for key in ("time", "evidence", "after")}
    return built(Alert, own | {"layers": _tuple(record["layers"]), "by_layer": _by_layer(record)})


def _by_layer(alert: Mapping[str, Any]) -> tuple[LayerFinding, ...]:
    """Return the findings of an alert by layer; empty if an older version wrote it."""
    unset: Plain = {field.name: None for field in fields(LayerFinding)}
    return tuple(built(LayerFinding, unset | known(each, unset)) for each in alert.get("by_layer") or ())


def layer_from_record(record: Mapping[str, Any]) -> LayerReport:
    """Return the layer that `LayerReport.to_record` was called on, without the fields that it does not write.

    Unknown keys, as a newer version may have added, are read as measures if they are numbers, and skipped otherwise. An
    `esd` in the form of `esd_to_record` is read too.

    Raises:
        TypeError, AttributeError: without a name, a status or a step, for a field of a wrong type, and for an `esd` of
            another form.
    """
    own = {key: record[key] for key in _STORED if key in record}
    own["phase"] = Phase(own["phase"]) if own.get("phase") in _PHASES else Phase.UNCLASSIFIED
    own["aliases"] = _tuple(own.get("aliases"))
    own |= {key: math.nan for key in _RATIOS if own.get(key) is None}
    own["esd"] = _esd(record.get("esd"))
    measures: dict[str, float] = {}
    nulls: dict[str, float] = {}
    for key, value in record.items():
        if key in _NOT_MEASURES or not (value is None or isinstance(value, int | float)):
            continue
        number = math.nan if value is None else float(value)
        if key.endswith("_null"):
            nulls[key.removesuffix("_null")] = number
        else:
            measures[key] = number
    return built(LayerReport, own | {"measures": measures, "nulls": nulls})


def esd_to_record(esd: Esd) -> Plain:
    """Return a JSON object: log₁₀ λ to 4 decimals, `top` to 4 digits, and `zeros` and `noise` if there are any.

    `noise` has 2 digits, which is less than a line's width in a picture, and 0 below a twentieth of an eigenvalue.
    """
    record: Plain = {"low": round(esd.low, 4), "high": round(esd.high, 4), "counts": list(esd.counts)}
    if esd.zeros:
        record["zeros"] = esd.zeros
    if esd.noise:
        record["noise"] = [rounded(expected, 2) if expected >= 0.05 else 0 for expected in esd.noise]
    return record | {"top": [rounded(value, 4) for value in esd.top]}


def _esd(saved: Mapping[str, Any] | None) -> Esd | None:
    if saved is None:
        return None
    esd = built(Esd, {key: _tuple(value) for key, value in known(saved, _ESD_FIELDS).items()})
    if not esd.counts:
        raise TypeError("its esd has no bins")
    return esd


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain_value(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case Esd() | LayerFinding():
            return to_plain(value)
        case tuple():
            return [_plain_value(each) for each in value]
        case Mapping():
            return dict(value)
    return value
