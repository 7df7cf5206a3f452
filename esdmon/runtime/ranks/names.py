"""Define `JobNames`, which translates the names of matrices in a job to those in the model of rank 0."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import final

from esdmon.records import LayerReport
from esdmon.runtime.ranks.holdings import Holdings
from esdmon.runtime.ranks.parts import Parts

_log = logging.getLogger("esdmon")
_MOST_NAMED = 6  # matrices in a log line


@final
class JobNames:
    """The names of matrices in a job, and what rank 0 holds of each.

    Args:
        parts: the parts of weights that rank 0 holds.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._holdings = Holdings()
        self._local: Mapping[str, str] = {}
        """Rank 0's own names by the names in the job, if they differ."""
        self._has_logged = False

    def update(self, holdings: Holdings) -> None:
        """Take the names of new holdings; log once that one name stands for several weights."""
        self._holdings = holdings
        self._local = holdings.local_names(0)  # looked up for each matrix at each due step
        several = sorted({name for names in holdings.names.values() for name in names.values()})
        if several and not self._has_logged:
            self._has_logged = True
            _log.info(
                "esdmon: ranks hold different weights under the same names; each is read as name@rank, after the first "
                "rank that holds it: %s.",
                ", ".join(several[:_MOST_NAMED]) + (" …" if len(several) > _MOST_NAMED else ""),
            )

    def local(self, name: str) -> str:
        """Return rank 0's own name of a matrix of the job; empty where its model has none."""
        local = self._local.get(name, name)
        return local if self._parts.has(local) else ""

    def whole(self, name: str) -> str:
        """Return rank 0's own name of a matrix of the job that it holds completely; empty for any other matrix."""
        local = self._local.get(name, name)
        return local if self._parts.is_here(local) else ""

    def renamed(self, layers: Mapping[str, LayerReport]) -> dict[str, LayerReport]:
        """Return readings of rank 0's matrices under their names in the job."""
        names = {name: self._holdings.names.get(0, {}).get(name, name) for name in layers}
        return {names[name]: replace(layer, name=names[name]) for name, layer in layers.items()}
