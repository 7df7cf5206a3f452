"""Shorten the lines of a file of records, and restore them: write values that seldom change only when they change.

Some keys are *carried*: the description of a layer, its explanation, and its nulls. If a carried key is absent from a
line, it has the same value as in the last line of this layer that contains the key. A null (`alpha_null`) is restored
only if its measure (`alpha`) is present, and is exact to 2 % if it depends on the scales of rows and columns. So a
forward fill restores a table: `frame.groupby(["run", "name"]).ffill()`. Two kinds of keys are computed instead:
`emitted_step` is `step + age`, and the nulls in `POWERS` are proportional to `frobenius_norm` or its square.

Three groups of measures are written as one list each, without names, which would take more than half of the space
(`LISTS`): `"singular"`, of singular values; `"trap_parts"`, the parts of a trap; and `"experts"`, of single experts.
`condition_number` is computed again, as `spectral_norm` / `sigma_min`.

Numbers are rounded to 5 digits, since fits are not more accurate and a reading in float32 has an error of about 1e-6;
numbers that are estimated on a sample of the elements are rounded to 4 digits. Files of older versions have all keys in
all lines, and are read in the same way.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, final

from esdmon.records.layer import RECORD_KEYS
from esdmon.records.values import DIGITS, Record, is_number, rounded
from esdmon.spectrum.zhang2026 import DISTANCE

SAMPLED_DIGITS = 4
"""Significant digits of numbers that are estimated on a sample, of confidences, and in `LISTS`."""
POWERS = {
    "lambda_max_null": 2,
    "bulk_edge_null": 2,
    "spectral_norm_null": 1,
    "nuclear_norm_null": 1,
    "sigma_min_null": 1,
    "bulk_sigma_null": 1,
}
"""Nulls that are proportional to a power of `frobenius_norm`, with a factor that depends on the shape alone."""
LISTS = {
    "singular": ("effective_rank", "nuclear_norm", "sigma_min", "spectral_gap", "snr", DISTANCE),
    "trap_parts": (
        "trap_is_local",
        "trap_mean",
        "trap_count",
        "trap_row",
        "trap_column",
        "trap_value",
        "trap_share",
    ),
    "experts": (
        "hill_alpha_min",
        "hill_alpha_max",
        "stable_rank_min",
        "stable_rank_max",
        "spectral_norm_min",
        "spectral_norm_max",
        "frobenius_norm_min",
        "frobenius_norm_max",
    ),
}
"""Keys of lists with several measures, in this order; the distance only if there is one."""
_COMPUTED = "condition_number"
_SAMPLED = frozenset({"update_ratio", "step_ratio", "step_growth", "start_ratio", "phase_confidence"})
_ALWAYS = {"name", "status", "step", "N", "M", "phase", "alpha_is_meaningful", *_SAMPLED}
_STEADY = {"zero_rows", "zero_columns", "weak_rows", "weak_columns", "hard_rank", "sparsity"}  # seldom change
_CARRIED = {*RECORD_KEYS, *_STEADY, "still", "frozen", "waiting"} - _ALWAYS - {"emitted_step"}
_NULL = "_null"
_NULL_TOLERANCE = 0.02  # noise of one shape scatters by more; counts, such as that of `hard_rank`, are exact
_NUMBER = re.compile(r"[-+\d.e]*\d")


@final
class Shortener:
    """Shorten the records of one run, in the order in which they are written."""

    def __init__(self) -> None:
        self._written: dict[object, Record] = {}

    def shorten(self, record: Record, *, explained: bool = True) -> Record:
        """Return the record without values that are carried over from the last one of the same layer.

        Args:
            record: record of a layer, or of a summary.
            explained: always write the explanation; otherwise it is written only if its words have changed, not just
                its numbers.
        """
        written = self._written.setdefault(record.get("name"), {})
        short: Record = {}
        for key, value in record.items():
            if _is_carried(key):
                kept = _kept(key, value, record)
                is_due = explained and key == "explanation"
                if key in written and _is_same(written[key], kept, is_null=key.endswith(_NULL)) and not is_due:
                    continue
                written[key] = kept
            if key != "emitted_step":
                short[key] = rounded(value, SAMPLED_DIGITS if key in _SAMPLED else DIGITS)
        return _packed(short)


@final
class Restorer:
    """Restore the records of a file, in the order of its lines."""

    def __init__(self) -> None:
        self._read: dict[object, Record] = {}

    def restore(self, record: Mapping[str, Any]) -> Record:
        """Return the whole record of a line with a layer or a summary."""
        read = self._read.setdefault(tuple(str(record.get(key)) for key in ("run", "kind", "name")), {})
        record = _unpacked(record)
        whole = dict(record)
        for key, value in sorted(read.items(), key=lambda item: item[0].endswith(_NULL)):  # measures before nulls
            if key in _STEADY and record.get("status") != "ok":
                continue
            if key not in record and (key in _CARRIED or key.removesuffix(_NULL) in whole):
                whole[key] = rounded(value * _scale(key, record)) if key in POWERS and is_number(value) else value
        for key, value in record.items():
            if _is_carried(key):
                read[key] = value / _scale(key, record) if key in POWERS and is_number(value) else value
        if record["kind"] == "layer" and is_number(whole.get("age")):
            whole.setdefault("emitted_step", record["step"] + whole["age"])
        return whole


def _packed(record: Record) -> Record:
    """Return a record with each group of measures in `LISTS` replaced by a list, if the record has all of the group."""
    for name, measures in LISTS.items():
        replaced = {*measures, _COMPUTED} if name == "singular" else {*measures}
        is_complete = record.keys() >= replaced - {DISTANCE}
        if is_complete and (name != "singular" or _can_compute_condition(record)):
            values = [rounded(record[key], SAMPLED_DIGITS) for key in measures if key in record]
            record = {key: value for key, value in record.items() if key not in replaced} | {name: values}
    return record


def _unpacked(record: Mapping[str, Any]) -> Record:
    """Return a line's record with the measures in its lists by name."""
    whole = dict(record)
    for name, measures in LISTS.items():
        values = whole.pop(name, None)
        if isinstance(values, list) and len(values) <= len(measures):  # those of older versions may be shorter
            whole |= dict(zip(measures, values, strict=False))
            if name == "singular":
                whole[_COMPUTED] = _condition(whole)
    return whole


def _condition(record: Mapping[str, Any]) -> float | None:
    """Return σmax/σmin; None if it is undefined."""
    largest, smallest = record.get("spectral_norm"), record.get("sigma_min")
    if not (is_number(largest) and is_number(smallest) and smallest > 0):
        return None
    condition: float = rounded(largest / smallest, SAMPLED_DIGITS)
    return condition


def _can_compute_condition(record: Mapping[str, Any]) -> bool:
    """Return whether the condition number of a record equals the one that is computed from its other values."""
    value, computed = record[_COMPUTED], _condition(record)
    if computed is None or not is_number(value):
        return value is computed
    return math.isclose(value, computed, rel_tol=1e-3)


def _is_carried(key: str) -> bool:
    """Return whether a key is carried: absent from a line if it has the same value as in an earlier one."""
    return key in _CARRIED or key.endswith(_NULL)


def _kept(key: str, value: Any, record: Record) -> Any:
    """Return the part of a value whose change causes the value to be written again."""
    if key == "explanation":
        return _NUMBER.sub("#", value)
    if key in POWERS and is_number(value):
        return rounded(value / _scale(key, record), 9)
    return rounded(value)


def _scale(key: str, record: Mapping[str, Any]) -> float:
    """Return the factor that a null is proportional to; 1 if the norm is unknown, or its square may be 0 or ∞."""
    norm = record.get("frobenius_norm")
    return float(norm ** POWERS[key]) if is_number(norm) and 1e-100 < norm < 1e100 else 1.0


def _is_same(before: Any, now: Any, *, is_null: bool) -> bool:
    if is_null and isinstance(before, float) and isinstance(now, float) and not now.is_integer():
        return math.isclose(before, now, rel_tol=_NULL_TOLERANCE)
    return type(before) is type(now) and bool(before == now)
