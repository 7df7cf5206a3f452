"""Define `ChangeLog`, which logs what changes in a model while it is watched: its matrices, and which of them train."""

import logging
from collections.abc import Collection
from typing import final

from esdmon.records import Coverage
from esdmon.records.text import named

_MAX_WARNINGS = 5
"""Changes of each kind that are logged at level INFO or above; later ones at DEBUG. Our choice: some loops change
`requires_grad` at each step, as those of GANs do."""

_log = logging.getLogger("esdmon")


@final
class ChangeLog:
    """Log changes of a model: at level INFO, and as a warning where a change first takes matrices away.

    Scripts change models on purpose, as by pruning, fake quantisation and new layers: readings then go on as before.
    """

    def __init__(self) -> None:
        self._parameters = self._losses = self._flips = 0

    def parameters(self, before: Collection[str], now: Collection[str], coverage: Coverage) -> None:
        """Log that the model has other parameters than before, given the names of its matrices."""
        new = [name for name in now if name not in before]
        lost = [name for name in before if name not in now]
        changes = {"read from now on": named(new), "not read any more": named(lost)}
        what = "; ".join(f"{names}: {change}" for change, names in changes.items() if names)
        is_first_loss = bool(lost) and not self._losses
        _log.log(
            logging.WARNING if is_first_loss else _level(self._parameters),
            "esdmon: the parameters of the model have changed (%s): %s",
            what or "the same matrices, of other parameters",
            "\n".join(coverage.lines),
        )
        self._parameters += 1
        self._losses += bool(lost)

    def trainable(self, before: Collection[str], now: Collection[str], names: Collection[str]) -> None:
        """Log which of the matrices `names` require a gradient now and did not before, or the reverse."""
        thawed = named(name for name in names if name in now and name not in before)
        frozen = named(name for name in names if name in before and name not in now)
        if thawed or frozen:
            _log.log(
                _level(self._flips),
                "esdmon: requires_grad of weights has changed: now trainable: %s; now frozen: %s. Frozen weights "
                "are read again only if they move.",
                thawed or "none",
                frozen or "none",
            )
            self._flips += 1


def _level(logged: int) -> int:
    return logging.DEBUG if logged >= _MAX_WARNINGS else logging.INFO
