"""Records as plain data that any checkpoint can hold, and back: numbers, texts, lists and dictionaries."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import Any, Protocol

from esdmon.records import Alert, Esd, LayerReport
from esdmon.spectrum import Phase

Plain = dict[str, Any]


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


def layer_from(plain: Mapping[str, Any]) -> LayerReport:
    """The layer that `to_plain` was given."""
    esd = plain["esd"] and Esd(**plain["esd"] | {"counts": tuple(plain["esd"]["counts"])})
    changed = {"phase": Phase(plain["phase"]), "aliases": tuple(plain["aliases"]), "esd": esd}
    return LayerReport(**dict(plain) | changed)


def alert_from(plain: Mapping[str, Any]) -> Alert:
    """The alert that `to_plain` was given."""
    return Alert(**dict(plain) | {"layers": tuple(plain["layers"])})


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
