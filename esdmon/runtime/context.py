"""Define `Context`, which holds what all parts of one monitor share."""

from dataclasses import dataclass, field
from functools import partial

from esdmon.isolation import Faults
from esdmon.limits import Limits
from esdmon.runtime.ranks.requests import Requests
from esdmon.runtime.usage_hints import UsageHints
from esdmon.schedule.budget import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the parts of one monitor share."""

    limits: Limits = field(default_factory=Limits)
    faults: Faults = field(default_factory=Faults)
    """Keeps failures away from the training, and counts them."""
    budget: Budget = field(default_factory=partial(Budget, None))
    """Is charged with the time of the monitor, and provides the credit for deferred work."""
    requests: Requests = field(default_factory=Requests)
    """The requests of alerts to stop or to save, exchanged with the other ranks."""
    hints: UsageHints = field(default_factory=UsageHints)
    """Logs hints about the use of the monitor."""
