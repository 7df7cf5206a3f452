"""Define `Costs`: the expected seconds of a reading of each matrix, estimated from past readings."""

from collections.abc import Mapping
from typing import final


@final
class Costs:
    """The seconds of a reading of each matrix: the measured ones, or else estimates scaled to the measured ones.

    Args:
        nominal: estimated seconds by matrix, up to a common factor, which is determined from measurements.
    """

    def __init__(self, nominal: Mapping[str, float]) -> None:
        self._nominal: Mapping[str, float] = {}
        self._seconds: dict[str, float] = {}
        """The last measured seconds by matrix."""
        self._measured = [0.0, 0.0]
        """Sums of measured and of nominal seconds of the read matrices; their ratio is the common factor."""
        self.replace(nominal)

    def replace(self, nominal: Mapping[str, float]) -> None:
        """Replace the list of matrices; keep the times of matrices that stay."""
        self._nominal = {name: self._nominal.get(name, seconds) for name, seconds in nominal.items()}
        self._seconds = {name: seconds for name, seconds in self._seconds.items() if name in nominal}
        self._measured = [sum(self._seconds.values()), sum(map(self._nominal.__getitem__, self._seconds))]

    def expected(self, name: str) -> float:
        """Return the expected seconds of a reading; 0 for a matrix that does not exist any more."""
        if name in self._seconds:
            return self._seconds[name]
        seconds, nominal = self._measured
        return self._nominal.get(name, 0.0) * (seconds / nominal if nominal else 1.0)

    def took(self, name: str, seconds: float) -> None:
        """Record the duration of a reading."""
        if name not in self._nominal:
            return
        if name in self._seconds:
            self._measured[0] += seconds - self._seconds[name]
        else:
            self._measured[0] += seconds
            self._measured[1] += self._nominal[name]
        self._seconds[name] = seconds
