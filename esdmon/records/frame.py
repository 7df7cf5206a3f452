"""Convert records to a table of pandas, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from esdmon.errors import MissingExtraError
from esdmon.records.values import Record

if TYPE_CHECKING:
    import pandas as pd


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Return a row for each record and a column for each key; undefined numbers are NaN.

    Raises:
        MissingExtraError: without pandas.
    """
    try:
        import pandas as pd  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise MissingExtraError("to_dataframe()", "pandas", "notebook") from error
    return pd.DataFrame.from_records(records)
