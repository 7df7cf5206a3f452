"""Define `raise_common`, which raises a problem of the selection of matrices where all ranks of a job have it.

A stage of a pipeline may lack matrices that others have.
"""

import logging
from collections.abc import Mapping

from esdmon.errors import InputError
from esdmon.runtime.ranks.coordination import Coordinator

_log = logging.getLogger("esdmon")


def raise_common(ranks: Coordinator, problems: Mapping[str, InputError]) -> None:
    """Raise the first problem of this rank that all ranks have.

    Args:
        ranks: the messages of the job.
        problems: those of this rank, by option.

    Raises:
        InputError: that problem.
    """
    common = ranks.common(problems)
    if common is None:
        _log.warning(
            "esdmon: not all ranks have called watch() in %g s, so rank %d continues without what its model lacks: %s",
            ranks.timeout,
            ranks.rank,
            next(iter(problems.values())),
        )
        return
    for about, error in problems.items():
        if about in common:
            raise error
