"""`TableJoin`: on rank 0 of a job, join the tables that ranks have announced; in a thread, where there are many."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from esdmon.runtime.ranks.coordination import Coordinator, Role
from esdmon.runtime.ranks.holdings import Holdings, Table, join


@dataclass(frozen=True, slots=True)
class Joined:
    """What rank 0 knows of the ranks of a job."""

    tables: Mapping[int, Table] = field(default_factory=dict)
    """What each rank has announced."""
    roles: Mapping[int, Role] = field(default_factory=dict)
    """What each rank needs to know to act on plans."""
    paused: frozenset[int] = frozenset()
    """Ranks that neither read nor give fragments for now."""
    left: frozenset[int] = frozenset()
    """Ranks that have closed their monitors. Their last readings may be on their way."""
    holdings: Holdings = field(default_factory=Holdings)
    """The tables, joined."""


@final
class TableJoin:
    """Join the tables that have been announced, and give ranks their roles.

    Args:
        ranks: the messages of the job.
        before: what was known before.
        paused: ranks that neither read nor give fragments now.
        left: ranks that have closed their monitors.
        version: of the holdings, once they are joined.
    """

    def __init__(
        self, ranks: Coordinator, before: Joined, *, paused: frozenset[int], left: frozenset[int], version: int
    ) -> None:
        self._ranks = ranks
        self._before = before
        self._paused = paused
        self._left = left
        self._version = version
        self.result: Joined | Exception | None = None
        """None until it is done; an exception is for the training's thread to raise."""

    def run(self) -> None:
        """Join the tables."""
        try:
            self.result = self._join()
        except Exception as error:  # noqa: BLE001 -- raised by the training's thread
            self.result = error

    def _join(self) -> Joined:
        tables = {**self._before.tables, **{table.rank: table for table in self._ranks.take_tables()}}
        holdings = join(tables, self._paused, self._left)
        copies = holdings.copies()
        roles = {rank: Role(holdings.local_names(rank), copies.get(rank, {})) for rank in tables}
        for rank, role in roles.items():
            if self._before.roles.get(rank) != role:
                self._ranks.give_role(rank, role, self._version)
        return Joined(tables, roles, self._paused, self._left, holdings)
