"""Define `Announcer`, which announces the weights that this rank holds, and the address from which it serves copies."""

import logging
from dataclasses import replace
from typing import final

from esdmon.isolation import describe
from esdmon.limits import Limits
from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.fragment_exchange import FragmentExchange
from esdmon.runtime.ranks.holdings import Table
from esdmon.runtime.ranks.parts import ShardedSource
from esdmon.runtime.workers.executor import Executor

_log = logging.getLogger("esdmon")


@final
class Announcer:
    """Write the table of this rank to the job's store, again when the model has changed.

    Args:
        source: the matrices of this rank's model.
        executor: decides how this rank reads.
        ranks: the messages of the job.
        limits: bytes of copies, and seconds of waiting.
    """

    def __init__(self, source: ShardedSource, executor: Executor, ranks: Coordinator, limits: Limits) -> None:
        self._source = source
        self._executor = executor
        self._ranks = ranks
        self._limits = limits
        self._address = ""
        self._pause = self._left = 0
        """Calls of `refresh` between the last two tries to listen, and until the next."""
        self.has_joined = False
        """Whether this rank has announced what it holds."""
        self.n_listed = 0
        """Matrices of this rank's model, as last announced."""
        self.exchange: FragmentExchange | None = None
        """Copies of this rank's fragments; None for a rank that has none."""

    def get_ready(self) -> bool:
        """Announce the table of this rank before the first due step, once rank 0 watches.

        Returns:
            Whether the model has changed.
        """
        return False if self.has_joined or self._ranks.token() is None else self.refresh()

    def refresh(self) -> bool:
        """Announce the table of this rank, if it is not announced yet, the model has changed, or it now has an address.

        Returns:
            Whether the model has changed.
        """
        has_changed = self._source.refresh()
        if not self.has_joined or has_changed or self._listens_at_last():
            token = self._ranks.token()
            if token is not None:  # else rank 0 does not watch yet
                self._ranks.announce(self._table(token))
                self.has_joined = True
        return has_changed

    def _table(self, token: bytes) -> Table:
        matrices, parts = self._source.parts.holdings()
        self.n_listed = len(matrices)
        if parts and self.exchange is None:
            self.exchange = FragmentExchange(token, self._limits.copied_bytes, self._limits.fragment_seconds)
            self._listen(self.exchange)
        address = self._address if parts else ""
        if parts and not address:
            parts = {name: replace(part, fragment=None) for name, part in parts.items()}
        skipped = tuple((skip.name, skip.n_parameters, skip.reason) for skip in self._source.coverage.skipped)
        copies, pauses = not self._executor.on_the_spot, self._executor.pauses
        return Table(self._ranks.rank, address, matrices, parts, skipped, copies=copies, pauses=pauses)

    def _listens_at_last(self) -> bool:
        """Try again to listen if this rank could not; return whether it can now."""
        if self.exchange is None or self._address:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._listen(self.exchange)
        return bool(self._address)

    def _listen(self, exchange: FragmentExchange) -> None:
        """Listen for the ranks that fetch fragments; where that fails there is no address, and a later try."""
        try:
            self._address = exchange.open()
        except (OSError, RuntimeError) as error:  # the process may open no file, or start no thread, for now
            if not self._pause:
                _log.warning(
                    "esdmon: rank %d cannot listen for the other ranks: %s. Until it can, weights of which it holds a "
                    "part are not read; it tries again at later due steps. Set GLOO_SOCKET_IFNAME to the interface of "
                    "the job if it never can.",
                    self._ranks.rank,
                    describe(error),
                )
            self._pause = self._left = min(max(1, 2 * self._pause), self._limits.longest_pause)
            return
        if self._pause:
            _log.warning(
                "esdmon: rank %d listens for the other ranks now. Weights of which it holds a part are read from now "
                "on.",
                self._ranks.rank,
            )
