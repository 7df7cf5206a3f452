"""Define `Screened`, the norms of one matrix between two readings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esdmon.records.values import DIGITS, Record, jsonable, rounded

CLOSE = 0.01
"""Residual up to which a screened λmax is charted among those of readings. Our choice."""
_KEYS = ("frobenius_norm", "spectral_norm", "lambda_max", "stable_rank", "residual")


@dataclass(frozen=True, slots=True)
class Screened:
    """Norms of one matrix, computed without its spectrum by a few steps of the Lanczos method.

    λmax of the subspace of these steps is a lower bound of λmax, and W has an eigenvalue WᵀW/N within `residual` · λmax
    of it. There is no phase and no alpha. Of a matrix that is sharded over ranks only ‖W‖_F is computed.
    """

    name: str
    """Name of the matrix, as in its `LayerReport`."""
    step: int
    """Number of optimizer steps taken when the weight was screened."""
    frobenius_norm: float
    """‖W‖_F, >= 0."""
    spectral_norm: float
    """σmax = ‖W‖₂, from below; NaN for a matrix that is sharded over ranks."""
    residual: float
    """‖WᵀWv − θv‖/θ, >= 0, of the vector v and its Rayleigh quotient θ = `spectral_norm`²; NaN without one."""
    N: int
    """Longer side of the matrix, without the rows and columns that were dead at its last reading."""
    is_new: bool = True
    """True in the first report that has it."""

    @property
    def lambda_max(self) -> float:
        """Return the largest eigenvalue of WᵀW/N, from below; NaN for an empty matrix."""
        return self.spectral_norm**2 / self.N if self.N else math.nan

    @property
    def stable_rank(self) -> float:
        """Return ‖W‖_F²/σmax², from above; NaN for a zero matrix."""
        return (self.frobenius_norm / self.spectral_norm) ** 2 if self.spectral_norm > 0 else math.nan

    @property
    def measures(self) -> dict[str, float]:
        """Return the values by the names of the measures of a reading: those that may be charted among readings.

        That is ‖W‖_F, and the others where the residual is at most `CLOSE`.
        """
        return {key: getattr(self, key) for key in (_KEYS[:-1] if self.residual <= CLOSE else _KEYS[:1])}

    def is_after(self, step: int | None) -> bool:
        """Return whether the weight was screened after a reading at a step; True for None."""
        return step is None or self.step > step

    def to_record(self) -> Record:
        """Return a flat JSON object, rounded to the digits of a JSONL."""
        values = {key: jsonable(rounded(getattr(self, key), DIGITS)) for key in _KEYS}
        return {"step": self.step, "name": self.name, "N": self.N, **values}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Screened":
        """Return what `to_record` was called on.

        Raises:
            KeyError, TypeError, ValueError: if the record lacks a field, or has another type in it.
        """
        frobenius_norm = float(record["frobenius_norm"])
        spectral_norm, residual = (
            math.nan if record[key] is None else float(record[key]) for key in ("spectral_norm", "residual")
        )
        return cls(
            str(record["name"]), int(record["step"]), frobenius_norm, spectral_norm, residual, N=int(record["N"])
        )
