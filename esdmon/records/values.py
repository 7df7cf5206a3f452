"""Convert values to JSON."""

import math
import operator
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeGuard

SCHEMA = 1
"""Version of the JSON form of records; every JSON object carries it."""

DIGITS = 5
"""Significant digits of numbers in files: fits are not more accurate, and float32 has an error of about 1e-6."""

_LARGEST_PLAIN = 1e7  # above, digits are hard to count; our choice

Record: TypeAlias = dict[str, Any]
"""A flat JSON object."""


def jsonable(value: Any) -> Any:
    """Return a number of any library as a Python number, None for NaN and ±infinity, other values unchanged."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def whole(value: Any) -> int | None:
    """Return an integer of any library, such as a tensor of one element, as a Python int; None for anything else.

    >>> whole(7), whole(7.0), whole("7"), whole(True)
    (7, None, None, None)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that a float can hold; of whole numbers those of 64 bits."""
    return isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 64)


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Return a float with that many significant digits, a whole one as an int; other values unchanged.

    Whole numbers below 1e9 keep all digits, since they may be counts or the place of an element.

    >>> rounded(0.123456789), rounded(1234567.0), rounded("a")
    (0.12346, 1234567, 'a')
    """
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    if value.is_integer() and abs(value) < 1e9:
        return int(value)
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def significant(value: float, digits: int = 3) -> str:
    """Return a number with some significant digits, without an exponent from 1e-4 to ten million.

    >>> significant(1523.4), significant(0.0123), significant(3e9)
    ('1520', '0.0123', '3e+09')
    """
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if 1 <= abs(value) < _LARGEST_PLAIN and "e" in text else text


def show_number(values: Mapping[str, float], name: str, form: str) -> str:
    """Return a value in a format such as `.2f`; a dash if it is undefined or missing."""
    value = values.get(name, math.nan)
    return format(value, form) if math.isfinite(value) else "–"
