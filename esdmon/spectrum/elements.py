"""Define `Elements`: statistics of the elements of a weight, which cannot be computed from its eigenvalues."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrapElements:
    """The elements that cause a correlation trap: the ones whose distance from the mean is above (NM)^¼·σ."""

    count: int
    """Number of these elements; 0 if the mean alone causes the trap."""
    row: int
    """Row of the element that is farthest from the mean, from 0, dead rows included."""
    column: int
    """Column of that element, from 0, dead columns included."""
    value: float
    """Value of that element."""
    share: float
    """Share of Σw² that these elements and the mean contribute, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Elements:
    """Statistics of the elements of W, which cannot be computed from its eigenvalues."""

    mean: float
    variance: float
    minimum: float
    maximum: float
    zero_rows: int = 0
    """Dead rows of W, dropped before the spectrum was computed: all-zero, or an rms below 1e-3 of the median row's."""
    zero_columns: int = 0
    """Dead columns of W, by the same rule."""
    zeros: int = 0
    """Elements that are exactly zero in the remaining rows and columns."""
    rows: int = 0
    """Rows of W that remain; 0 if not known."""
    columns: int = 0
    """Columns of W that remain; 0 if not known."""
    weak_rows: int = 0
    """Remaining rows with an rms below a tenth of the median row's."""
    weak_columns: int = 0
    """Remaining columns with an rms below a tenth of the median column's."""
    trap: TrapElements | None = None
    """The elements that cause a correlation trap; None without a trap."""
    zero_slices: int = 0
    """Dead slices, by the same rule: all of a kernel position is zero under a mask, or at the start from a delta."""
    slices: int = 0
    """Slices that remain; 0 if not known."""

    @property
    def dead_units(self) -> str:
        """Return "3 of 64 rows and 1 of 9 columns are", or an empty text if no row, column or slice is dead."""
        sides = [
            (self.zero_rows, self.rows, "rows"),
            (self.zero_columns, self.columns, "columns"),
            (self.zero_slices, self.slices, "slices"),
        ]
        counts = [f"{dead} of {dead + left} {side}" if left else f"{dead} {side}" for dead, left, side in sides if dead]
        verb = "is" if self.zero_rows + self.zero_columns + self.zero_slices == 1 else "are"
        return f"{' and '.join(counts)} {verb}" if counts else ""
