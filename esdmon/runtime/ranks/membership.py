"""Define `Membership`, which records on rank 0 of a job the ranks that watch, and the weights that each holds."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from typing import final

from esdmon.runtime.ranks.coordination import Coordinator
from esdmon.runtime.ranks.holdings import Holdings, Table, join
from esdmon.runtime.ranks.messages import Role

_IN_THREAD = 4000  # ranks × matrices from which a thread joins the tables: it takes a fifth of a second. Our choice.
_TRIES = 3  # more attempts after an error, at due steps; our choice
_SETTLED = 2  # due steps without changes after which all ranks that watch are known; our choice


@dataclass(frozen=True, slots=True)
class Joined:
    """The joined announcements of all ranks."""

    version: int = 0
    tables: Mapping[int, Table] = field(default_factory=dict)
    """The tables that the ranks have announced."""
    roles: Mapping[int, Role] = field(default_factory=dict)
    """The roles of the ranks, which they need to follow plans."""
    paused: frozenset[int] = frozenset()
    """Ranks that neither read nor serve fragments for now."""
    left: frozenset[int] = frozenset()
    """Ranks that have closed their monitors. Their last readings may be on their way."""
    holdings: Holdings = field(default_factory=Holdings)


@final
class Membership:
    """Keep the tables that the ranks of a job have announced, and give each rank its role.

    Args:
        ranks: the messages of the job.
        is_paused: returns whether a rank is paused, since it has failed.
    """

    def __init__(self, ranks: Coordinator, is_paused: Callable[[int], bool]) -> None:
        self._ranks = ranks
        self._is_paused = is_paused
        self.known = Joined()
        """State as of the last `update`."""
        self.left: frozenset[int] = frozenset()
        """Ranks that have closed their monitors, as of the last check; no rank waits for them."""
        self._tables: dict[int, Table] = {}
        """The tables that were taken from the store, joined or not."""
        self._joining: Future[Joined] | None = None
        self._tries = 0
        """Attempts left to join tables after an error."""
        self._quiet = 0
        """Number of consecutive due steps without changes."""

    @property
    def present(self) -> list[int]:
        """Return the ranks that watch."""
        return [rank for rank in self.known.tables if rank not in self.left]

    @property
    def is_alone(self) -> bool:
        """Return whether no other rank is known to watch."""
        return len(self.present) <= 1

    @property
    def pauses(self) -> bool:
        """Return whether there are times at which threads of a rank begin no reading."""
        return any(self.known.tables[rank].pauses for rank in self.present)

    @property
    def is_complete(self) -> bool:
        """Return whether all ranks of the job have announced their tables."""
        return len(self.known.tables) == self._ranks.size

    @property
    def is_settled(self) -> bool:
        """Return whether all ranks that watch are known."""
        return self.is_complete or self._quiet >= _SETTLED

    def look_who_left(self) -> None:
        """Look which ranks have closed their monitors; what these have not answered is given up."""
        self.left = self._ranks.left()

    def update(self, n_matrices: int, *, is_due: bool) -> bool:
        """Update the holdings from new tables, and from paused and closed ranks; return True if they have changed.

        Args:
            n_matrices: number of matrices of a rank. For a large job a thread joins the tables, and a later call
                returns True.
            is_due: True at a due step, which counts as one without changes if there are none.
        """
        if self._joining is None:
            if is_due:  # not at the steps before the first due one
                self.look_who_left()
            paused = frozenset(filter(self._is_paused, self.present))
            has_failed = is_due and self._tries > 0
            if has_failed or self._ranks.has_tables() or (paused, self.left) != (self.known.paused, self.known.left):
                self._tries = self._tries - 1 if has_failed else _TRIES
                self._joining = self._begin(paused, in_thread=self._ranks.size * n_matrices > _IN_THREAD)
        self._quiet = 0 if self._joining else self._quiet + is_due
        if self._joining is None or not self._joining.done():
            return False
        joining, self._joining = self._joining, None
        self.known = joining.result()
        self._tries = 0
        return True

    def _begin(self, paused: frozenset[int], *, in_thread: bool) -> Future[Joined]:
        joining: Future[Joined] = Future()
        left = self.left

        def run() -> None:
            try:
                joining.set_result(self._join(paused, left))
            except Exception as error:  # noqa: BLE001 -- raised later in the training's thread
                joining.set_exception(error)

        if in_thread:
            Thread(target=run, name="esdmon-tables", daemon=True).start()
        else:
            run()
        return joining

    def _join(self, paused: frozenset[int], left: frozenset[int]) -> Joined:
        before, version = self.known, self.known.version + 1
        for table in self._ranks.take_tables():
            self._tables[table.rank] = table
        tables = dict(self._tables)
        holdings = join(tables, paused, left)
        copies = holdings.copies()
        roles = {rank: Role(holdings.local_names(rank), copies.get(rank, {})) for rank in tables}
        for rank, role in roles.items():
            if before.roles.get(rank) != role:
                self._ranks.give_role(rank, role, version)
        return Joined(version, tables, roles, paused, left, holdings)
