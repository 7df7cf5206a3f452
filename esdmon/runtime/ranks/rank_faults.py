"""Define `RankFaults`, which counts on rank 0 the ranks that fail to read or to serve their fragments."""

from collections.abc import Collection, Iterable
from functools import partial
from typing import final

from esdmon.isolation import Faults
from esdmon.runtime.ranks.messages import Answers, Plan

_MOST_NAMED = 6  # matrices in an error
_ASKED = "reading between scheduled steps on all ranks"


@final
class RankFaults:
    """Count the failures of each rank; a rank that fails repeatedly is paused, as any other part.

    Args:
        faults: of all parts of the monitor.
    """

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._blamed: dict[int, dict[int, str]] = {}
        """For each due step, the ranks that did not serve their fragments, and the reasons."""
        self._plans: dict[int, Plan] = {}
        """The plans of due steps with missing readings."""
        self.is_asking_paused = partial(faults.disabled, _ASKED)  # called at each step; a method would add a call
        """Returns whether requested readings between due steps are paused after repeated failures."""

    def is_paused(self, rank: int) -> bool:
        """Return whether a rank is paused, so that it neither reads nor serves fragments."""
        return any(self._faults.disabled(who) for who in (_reader(rank), _giver(rank)))

    def begin(self, step: int, plan: Plan, failures: dict[int, str]) -> None:
        """Begin a due step.

        Args:
            step: optimizer steps taken.
            plan: the plan of that step.
            failures: the ranks that do not serve their fragments to rank 0, and the reasons; filled while rank 0 reads.
        """
        self._blamed[step], self._plans[step] = failures, plan

    def answered(self, step: int, answers: Answers) -> None:
        """Count which ranks have answered at a due step; other steps do not count, since ranks may miss them."""
        if step not in self._blamed:
            return
        for rank in answers.missing:
            self._faults.record(_reader(rank), step, TimeoutError("its readings did not arrive in time"))
        for rank, found in answers.failures.items():
            self._faults.worked(_reader(rank), step)
            self._blamed[step] |= found

    def settle(self, step: int, ranks: Iterable[int]) -> None:
        """Count which ranks have served their fragments, once all readings of a step have arrived."""
        blamed, plan = self._blamed.pop(step, {}), self._plans.pop(step, None)
        if plan is None or not any(assignment.parameters for assignment in plan.assignments):
            return
        for rank in ranks:
            if rank in blamed:
                self._faults.record(_giver(rank), step, TimeoutError(blamed[rank]))
            else:
                self._faults.worked(_giver(rank), step)

    def settle_asked(self, step: int, missed: Collection[str]) -> None:
        """Count whether all ranks have done the requested readings at a poll; a rank that is ahead misses them."""
        if missed:
            names = ", ".join(sorted(missed)[:_MOST_NAMED])
            self._faults.record(_ASKED, step, TimeoutError(f"not all ranks have read or sent their part of {names}"))
        else:
            self._faults.worked(_ASKED, step)

    def restart(self) -> None:
        """Discard the unfinished due steps."""
        self._blamed.clear()
        self._plans.clear()


def _reader(rank: int) -> str:
    return f"reading on rank {rank}"


def _giver(rank: int) -> str:
    return f"fetching from rank {rank}"
