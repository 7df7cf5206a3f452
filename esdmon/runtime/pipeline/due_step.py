"""Define `DueStep`: the readings of one due step, until they are reported."""

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from esdmon.records import LayerReport
from esdmon.runtime.ranks.assignments import Assigned
from esdmon.runtime.workers.source import Task


@dataclass(slots=True)
class DueStep:
    """A due step, with its finished and unfinished readings."""

    step: int
    host_step: int | None
    drift: Mapping[str, float]
    """The drift of each matrix since it was read, as last measured."""
    since: float
    """The time of the step, in seconds of the monotonic clock."""
    extra: bool = False
    """True if the step is not scheduled."""
    first: Collection[str] = ()
    """Matrices that are read before all others."""
    asked: frozenset[str] = frozenset()
    """At a step that is not scheduled: the matrices in whose readings other ranks take part."""
    missed: set[str] = field(default_factory=set)
    """Matrices of `asked` that a rank has not read, or whose fragment a rank has not served."""
    begun: set[str] = field(default_factory=set)
    owners: Mapping[str, int] = field(default_factory=dict)
    """The rank to which rank 0 has assigned each matrix."""
    here: deque[Task] = field(default_factory=deque)
    """Unfinished readings of this process, in the order in which they will be finished."""
    elsewhere: Task | None = None
    """Unfinished readings on other ranks."""
    until: float = math.inf
    """The time from which unfinished readings of other ranks may be cancelled."""
    until_step: int = 0
    """The step from which they may be cancelled: both must be reached."""
    read: dict[str, LayerReport] = field(default_factory=dict)
    seconds: float = 0.0

    def follow(self, assigned: Assigned) -> list[str]:
        """Record the begun readings of a plan, here and on other ranks; return those without memory on this rank."""
        assignments = assigned.plan.assignments
        self.owners = {name: assignment.owner for assignment in assignments for name in assignment.names}
        self.begun.update(self.owners)
        self.here += assigned.tasks
        if self.extra:
            self.asked = frozenset(self.owners)
        here = {name for task in assigned.tasks for name in task.names}
        return [
            name for assignment in assignments if not assignment.owner for name in assignment.names if name not in here
        ]

    @property
    def is_complete(self) -> bool:
        """Return whether all readings are finished."""
        return not self.here and self.elsewhere is None
