"""Define `RankNorms`, the norms that one rank of a job sends to rank 0."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from esdmon.records import Screened

_FIELDS = ("name", "step", "frobenius_norm", "spectral_norm", "residual", "N")


@dataclass(frozen=True, slots=True)
class RankNorms:
    """The norms that one rank has computed at a due step, by the names of the matrices in the job."""

    seconds: float = 0.0
    """Seconds that the rank has spent, in its hook and on its accelerator."""
    squares: Mapping[str, float] = field(default_factory=dict)
    """Σ wᵢⱼ² of the rank's parts of sharded matrices."""
    whole: tuple[Screened, ...] = ()
    """The norms of matrices that the rank holds completely."""

    def to_json(self) -> str:
        """Return the norms as JSON."""
        whole = [[getattr(each, name) for name in _FIELDS] for each in self.whole]
        return json.dumps([self.seconds, dict(self.squares), whole])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the norms that `to_json` was called on."""
        seconds, squares, whole = json.loads(text)
        return cls(seconds, squares, tuple(Screened(**dict(zip(_FIELDS, values, strict=True))) for values in whole))
