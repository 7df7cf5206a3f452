"""`TableJoin`: on rank 0 of a job, join the tables that ranks have announced; in a thread, where there are many."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

from esdmon.runtime.ranks.coordination import Coordinator, Role
from esdmon.runtime.ranks.holdings import Holdings, Table, join


@final
class TableJoin:
    """Join the tables that have been announced, and give ranks their roles.

    Args:
        ranks: the messages of the job.
        tables: those known before.
        roles: those given before.
        paused: ranks that neither read nor give fragments now.
        version: of the holdings, once they are joined.
    """

    def __init__(
        self,
        ranks: Coordinator,
        tables: Mapping[int, Table],
        roles: Mapping[int, Role],
        paused: frozenset[int],
        version: int,
    ) -> None:
        self._ranks = ranks
        self.tables = dict(tables)
        self.roles = dict(roles)
        self.paused = paused
        self._version = version
        self.holdings = Holdings()
        self.error: Exception | None = None
        self.is_done = False

    def run(self) -> None:
        """Join the tables; keep an error, for the training's thread to raise."""
        try:
            for table in self._ranks.take_tables():
                # A rank may leave while its last readings are on their way: its matrices stay in the report.
                known = self.tables.get(table.rank, table)
                self.tables[table.rank] = replace(known, has_left=True) if table.has_left else table
            self.holdings = join(self.tables, self.paused)
            copies = self.holdings.copies()
            for rank in self.tables:
                role = Role(self.holdings.local_names(rank), copies.get(rank, {}))
                if self.roles.get(rank) != role:
                    self._ranks.give_role(rank, role, self._version)
                    self.roles[rank] = role
        except Exception as error:  # noqa: BLE001 -- raised by the training's thread
            self.error = error
        self.is_done = True
