"""Values in JSON form."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeAlias

SCHEMA = 1
"""Version of the JSON form of records; every JSON object carries it."""

Record: TypeAlias = dict[str, Any]
"""A flat JSON object."""


def jsonable(value: Any) -> Any:
    """Return a number of any library as Python's own, None for NaN and ±infinity, other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def show_number(values: Mapping[str, float], name: str, form: str) -> str:
    """Return a value in a format such as `.2f`; a dash if it is undefined or missing."""
    value = values.get(name, math.nan)
    return format(value, form) if math.isfinite(value) else "–"
