"""Choose which matrices to read at a scheduled step, minimising staleness for a given cost.

A matrix that moves at a rate d (‖ΔW‖/‖W‖ per step) and is read every T steps is d·T/2 out of date on average, and costs
c/T per step. The total staleness is least, for a given total cost, where d·T²/c is equal for all matrices (Lagrange).
So the matrix with the largest drift · age / cost is read first; if λmax was screened, the larger of drift and |Δ ln
λmax| is used. This priority grows with age for every matrix that moves, and there is a longest wait, so no matrix is
left unread for ever.

Before any of that each matrix is read once, in the order of `esdmon.schedule.first_rounds`.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

from esdmon.schedule.costs import Costs
from esdmon.schedule.first_rounds import first_rounds

TOLERANCE = 1e-3
"""‖ΔW‖/‖W‖ up to which a matrix counts as unchanged. On 24 layers in training no meaningful alpha moved by more than a
hundredth of its standard error within it: tests/benchmarks/skipped.py."""
REFRESH = 10
"""Due steps after which an unchanged matrix is read anyway, if credit is left: a sample can miss a change in a few
rows. Our choice."""

RARE = 3
"""Due steps without a reading after which a matrix is screened. Our choice."""

LONGEST = 10
"""Multiple of the number of matrices, in due steps, after which a changed matrix has priority over the others: without
this limit a matrix that costs ten thousand times as much as its neighbours would wait a hundred times as long. Our
choice."""


@dataclass(slots=True)
class _State:
    round: int = 0
    """Round of first readings in which the matrix is read; see `first_rounds`."""
    read: int | None = None
    """Step of the last reading; None before the first."""
    measured: int = -1
    """Step at which drift was last measured."""
    drift: float = math.inf
    """‖ΔW‖/‖W‖ since the last reading, as last measured."""
    trainable: bool = True
    passed: int = 0
    """Number of due steps since the last reading."""
    readable: bool = True
    """True if the last reading gave numbers."""
    rate: float = math.nan
    """‖ΔW‖/‖W‖ per step, as last measured."""
    change: float = 0.0
    """|Δ ln λmax| since the last reading minus the error of the last screening, >= 0."""
    screened: int = -1
    """Step of the last screening."""

    def ahead(self, step: int) -> "_State":
        """Return the state with the drift that is expected at a later step; NaN if the rate is not known."""
        return self if self.read is None else replace(self, drift=self.rate * (step - self.read))

    @property
    def is_measured(self) -> bool:
        """Return whether drift was measured since the last reading; if there was no time for it, drift is 0."""
        return self.read is None or self.measured > self.read

    @property
    def known(self) -> tuple[int, int]:
        """Return a sort key of matrices: the step at which their norms were last known."""
        return max(self.screened, -1 if self.read is None else self.read), self.round

    def importance(self, step: int, cost: float) -> float:
        drift = max(self.drift, self.change)
        drift = drift if drift <= 1 else 1.0  # also for NaN
        return drift * (step - (self.read or 0)) / cost


@final
class ReadPriority:
    """The cost, the last reading and the drift of each matrix, to choose the matrices that are read next.

    Args:
        nominal: estimated seconds of a reading by matrix, up to a common factor, which is measured.
        on_device: the same with eigenvalues on an accelerator, for the matrices for which that is possible.
        limited: False without a budget: then all matrices are read except frozen ones that have not moved.
    """

    def __init__(
        self, nominal: Mapping[str, float], on_device: Mapping[str, float] | None = None, *, limited: bool = True
    ) -> None:
        self._states: dict[str, _State] = {}
        self._limited = limited
        self._costs = {where: Costs({}) for where in (False, True)}
        """Costs without and with eigenvalues on an accelerator."""
        self.on_device: Collection[str] = ()
        """The matrices whose eigenvalues are computed on an accelerator now."""
        self.replace(nominal, on_device)

    def replace(self, nominal: Mapping[str, float], on_device: Mapping[str, float] | None = None) -> None:
        """Replace the list of matrices; keep the data of matrices that stay."""
        self._states = {name: self._states.get(name) or _State() for name in nominal}
        for name, number in first_rounds(nominal).items():
            self._states[name].round = number
        self._costs[False].replace(nominal)
        self._costs[True].replace({name: (on_device or {}).get(name, seconds) for name, seconds in nominal.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the matrices, in the model's order."""
        return tuple(self._states)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a matrix of this name."""
        return name in self._states

    @property
    def sweep(self) -> float:
        """Return the expected seconds of reading all matrices."""
        return sum(map(self.expected, self._states))

    def expected(self, name: str, *, on_device: bool | None = None) -> float:
        """Return the expected seconds of a reading; 0 for a matrix that does not exist any more.

        Args:
            name: name of the matrix.
            on_device: whether eigenvalues are computed on an accelerator; None for the current choice.
        """
        return self._costs[name in self.on_device if on_device is None else on_device].expected(name)

    def pays_on_device(self, name: str) -> bool:
        """Return whether a reading is expected to cost less where eigenvalues are computed on an accelerator."""
        return self.expected(name, on_device=True) < self.expected(name, on_device=False)

    def to_measure(self) -> list[str]:
        """Return the matrices whose drift can be measured, the least recently measured first."""
        known = [name for name, state in self._states.items() if state.read is not None]
        return sorted(known, key=lambda name: self._states[name].measured)

    def drifted(self, name: str, step: int, drift: float, *, trainable: bool) -> None:
        """Record the drift of a matrix since its last reading; NaN if it is not known."""
        state = self._states[name]
        state.measured, state.drift, state.trainable = step, drift, trainable
        if state.read is not None and step > state.read:
            state.rate = drift / (step - state.read)

    def expect(self, name: str, step: int) -> None:
        """Set the drift that follows from the rate, if it cannot be measured at a step; NaN without a rate."""
        state = self._states[name]
        state.drift = state.ahead(step).drift

    def moved(self, name: str, drift: float, steps: int, *, trainable: bool) -> None:
        """Record the drift of a matrix between its last two readings, the number of steps, and whether it trains."""
        if name in self._states and steps > 0:
            state = self._states[name]
            state.rate, state.trainable = drift / steps, trainable

    def begun(self, name: str, step: int) -> None:
        """Record that a reading started at a step."""
        state = self._states[name]
        state.read, state.drift, state.measured, state.passed, state.change = step, 0.0, step, 0, 0.0

    def took(self, name: str, seconds: float, *, readable: bool = True, on_device: bool = False) -> None:
        """Record the duration of a reading, 0 where nothing was computed, and whether it gave numbers.

        Args:
            name: of the matrix.
            seconds: in all.
            readable: whether it gave numbers.
            on_device: whether eigenvalues were computed on an accelerator.
        """
        state = self._states.get(name)
        if state is not None:
            state.readable = readable
            if seconds > 0:
                self._costs[on_device].took(name, seconds)

    def to_screen(self, without: Collection[str] = (), *, in_part: bool = False) -> list[str]:
        """Return changed matrices without a reading for `RARE` due steps, the least recently known first.

        Matrices that were never read come first, in the order of first readings.

        Args:
            without: matrices to leave out.
            in_part: True if drift was measured on a part of each matrix at most; then every trainable matrix counts as
                changed.
        """
        states = {name: state for name, state in self._states.items() if name not in without}
        rare = [name for name, state in states.items() if state.read is None or state.passed >= RARE]
        moved = [name for name in rare if self._has_changed(states[name]) or (in_part and states[name].trainable)]
        return sorted(moved, key=lambda name: states[name].known) if self._limited else []

    def screened(self, name: str, step: int, change: float | None = None, *, since: int | None = None) -> None:
        """Record that a matrix was screened at a step, and how far ln λmax has changed.

        Args:
            name: of the matrix.
            step: optimizer steps taken when it was screened.
            change: |Δ ln λmax|; None if it is not computed yet, so that the last value is kept.
            since: step of the reading from which the change is measured; if a later reading has begun, the change is
                ignored.
        """
        state = self._states.get(name)
        if state is not None and (state.read is None or step > state.read):
            state.screened = max(step, state.screened)
            if change is not None:
                state.change = change if since in (None, state.read) else 0.0

    def lost(self, name: str) -> None:
        """Record that a reading was lost: the matrix counts as never read."""
        if name in self._states:
            self._states[name].read = None

    def drift(self, name: str) -> float:
        """Return ‖ΔW‖/‖W‖ since the last reading, as last measured; NaN if it was not measured."""
        state = self._states[name]
        return state.drift if state.read is not None and state.measured > state.read else math.nan

    def is_trainable(self, name: str) -> bool:
        """Return whether a matrix required a gradient when its drift was last measured."""
        return self._states[name].trainable

    def choose(
        self,
        step: int,
        credit: float,
        *,
        without: Collection[str] = (),
        first: Collection[str] = (),
        forced: bool = True,
        ahead: bool = False,
    ) -> list[str]:
        """Return the matrices to read within the credit, the highest priority first.

        Args:
            step: optimizer steps taken.
            credit: seconds that may be spent.
            without: matrices to leave out.
            first: matrices that come before all others, unless they are known to be unchanged.
            forced: choose one matrix that has changed even without credit for it.
            ahead: True for a future step, whose drifts are not measured yet.
        """
        costs = {name: self.expected(name) for name in self._states if name not in without}
        states = {name: self._states[name].ahead(step) if ahead else self._states[name] for name in costs}
        urgent = frozenset(first)
        chosen: list[str] = []
        for name in sorted(costs, key=lambda name: (name not in urgent, *self._order(states[name], step, costs[name]))):
            state = states[name]
            if self._has_changed(state) or (name in urgent and not state.is_measured):
                # Credit is saved for a matrix that does not fit now; otherwise the next ones would use it up each time.
                if costs[name] > credit and not (forced and not chosen):
                    break
            elif not (self._limited and state.passed >= REFRESH and costs[name] <= credit):
                continue
            chosen.append(name)
            credit -= costs[name]
        return chosen

    def affordable(self, names: Iterable[str], credit: float) -> list[str]:
        """Return the matrices among `names`, in their order, that can be read within the credit."""
        chosen: list[str] = []
        for name in names:
            if self.expected(name) <= credit:
                chosen.append(name)
                credit -= self.expected(name)
        return chosen

    def pass_by(self) -> None:
        """Count a due step for all matrices."""
        for state in self._states.values():
            state.passed += 1

    def _order(self, state: _State, step: int, cost: float) -> tuple[int, float, float]:
        if state.read is None:
            return 0, state.round, cost
        if not self._has_changed(state):
            return 3, state.read, cost
        if state.passed > LONGEST * len(self._states):
            return 1, -state.passed, cost
        return 2, -state.importance(step, cost), cost

    def _has_changed(self, state: _State) -> bool:
        if (
            state.read is None
            or max(state.drift, state.change) > TOLERANCE
            or (math.isnan(state.drift) and state.readable)
        ):
            return True
        return not self._limited and (state.trainable or state.drift > 0)
