"""Define `Screened`, the norms of one matrix between two readings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from esdmon.records.values import DIGITS, Record, jsonable, rounded

CLOSE = 0.01
"""Largest residual at which a screened λmax is charted in the same series as those of readings. Our choice."""
_KEYS = ("frobenius_norm", "spectral_norm", "lambda_max", "stable_rank", "residual")


@dataclass(frozen=True, slots=True)
class Screened:
    """Norms of one matrix, computed without its spectrum by a few steps of the Lanczos method.

    `lambda_max` is the largest eigenvalue in the subspace of these steps, and a lower bound of the true λmax. WᵀW/N has
    an eigenvalue within `residual` · `lambda_max` of it. There is no phase and no alpha. For a matrix that is sharded
    over ranks only ‖W‖_F is computed.
    """

    name: str
    """Name of the matrix, as in its `LayerReport`."""
    step: int
    """Number of optimizer steps taken when the weight was screened."""
    frobenius_norm: float
    """‖W‖_F, >= 0."""
    spectral_norm: float
    """Lower bound of σmax = ‖W‖₂; NaN for a matrix that is sharded over ranks."""
    residual: float
    """‖WᵀWv − θv‖/θ, >= 0, of the Lanczos vector v with Rayleigh quotient θ = `spectral_norm`²; NaN if not computed."""
    N: int
    """Longer side of the matrix, without the rows and columns that were dead at its last reading."""
    is_new: bool = True
    """True in the first report that contains this record, False in later ones."""

    @property
    def lambda_max(self) -> float:
        """Return a lower bound of the largest eigenvalue of WᵀW/N; NaN for an empty matrix."""
        return self.spectral_norm**2 / self.N if self.N else math.nan

    @property
    def stable_rank(self) -> float:
        """Return an upper bound of ‖W‖_F²/σmax²; NaN for a zero matrix."""
        return (self.frobenius_norm / self.spectral_norm) ** 2 if self.spectral_norm > 0 else math.nan

    @property
    def measures(self) -> dict[str, float]:
        """Return the values that are charted in the series of readings, by the names of the measures.

        ‖W‖_F is always among them; the others only if the residual is at most `CLOSE`.
        """
        return {key: getattr(self, key) for key in (_KEYS[:-1] if self.residual <= CLOSE else _KEYS[:1])}

    def is_after(self, step: int | None) -> bool:
        """Return whether the weight was screened after the reading at `step`; True if `step` is None."""
        return step is None or self.step > step

    def to_record(self) -> Record:
        """Return a flat JSON object, rounded to the digits of a JSONL."""
        values = {key: jsonable(rounded(getattr(self, key), DIGITS)) for key in _KEYS}
        return {"step": self.step, "name": self.name, "N": self.N, **values}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Screened":
        """Return the object of a record of `to_record`.

        Raises:
            KeyError, TypeError, ValueError: if the record lacks a field, or a field has a wrong type.
        """
        frobenius_norm = float(record["frobenius_norm"])
        spectral_norm, residual = (
            math.nan if record[key] is None else float(record[key]) for key in ("spectral_norm", "residual")
        )
        return cls(
            str(record["name"]), int(record["step"]), frobenius_norm, spectral_norm, residual, N=int(record["N"])
        )
