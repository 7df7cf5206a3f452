"""Build records from values that were read from a file, after a check of their types."""

from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from esdmon.records.values import is_number

Built = TypeVar("Built")
_NUMBER = (int, float)  # also for whole numbers and flags: pandas writes floats in their place if some are missing


class _Form(NamedTuple):
    """The values that a field may have."""

    types: tuple[type, ...]
    items: tuple[type, ...] = ()
    """Types of the items of a tuple; empty for any."""
    values: tuple[object, ...] = ()
    """The only values; empty for any."""

    def allows(self, value: object) -> bool:
        """Return whether a value is one of a field's."""
        if not _is_one(value, self.types) or (self.values and value not in self.values):
            return False
        return not (self.items and isinstance(value, tuple)) or all(_is_one(each, self.items) for each in value)


def built(kind: type[Built], values: Mapping[str, Any]) -> Built:
    """Return a record with these fields; a field that is None, and cannot be, gets its default.

    Raises:
        TypeError: for a field that is missing, or that has a value of another type.
    """
    forms = _forms(kind)  # type: ignore[arg-type]  # a class is hashable
    given = {name: value for name, value in values.items() if value is not None or forms[name].allows(None)}
    for name, value in given.items():
        if not forms[name].allows(value):
            raise TypeError(f"{name} is {value!r:.60}")
    return kind(**given)


def _is_one(value: object, types: tuple[type, ...]) -> bool:
    return isinstance(value, types) and (not isinstance(value, _NUMBER) or is_number(value))


@cache
def _forms(kind: type) -> dict[str, _Form]:
    return {name: _form(hint) for name, hint in get_type_hints(kind).items()}


def _form(hint: Any) -> _Form:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _Form((str,), values=arguments)
    if origin in (Union, UnionType):
        return _Form(tuple(each for argument in arguments for each in _form(argument).types))
    if origin is tuple:
        return _Form((tuple,), items=_form(arguments[0]).types)
    return _Form(_NUMBER if hint in (int, float, bool) else (origin or hint,))
